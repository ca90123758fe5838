"""YOLOv3."""

from flaxcnn.weights.names._order import darknet

LAYOUTS = {"darknet": darknet}
