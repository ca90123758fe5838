"""torchvision's `maskrcnn_resnet50_fpn`."""

from flaxcnn.weights.names.faster_rcnn import LAYOUTS as LAYOUTS
from flaxcnn.weights.names.faster_rcnn import OTHER_NAMES as OTHER_NAMES
