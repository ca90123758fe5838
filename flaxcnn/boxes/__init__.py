"""Boxes: overlaps, coding, anchors, matching, sampling and suppression, as pure functions.

Boxes are float32 [..., 4], (x1, y1, x2, y2) in pixels, padded to a fixed number of which `valid`
says what counts. Nothing here knows networks, targets or images.
"""

from flaxcnn.boxes.anchors import (
    fit_priors,
    make_anchors,
    make_cell_anchors,
    make_default_boxes,
    ssd_scales,
)
from flaxcnn.boxes.coding import (
    decode_boxes,
    decode_cells,
    decode_priors,
    encode_boxes,
    encode_cells,
    encode_priors,
)
from flaxcnn.boxes.geometry import (
    box_area,
    box_iou,
    clip_boxes,
    covered_share,
    from_centers,
    generalized_box_iou,
    paired_iou,
    to_centers,
)
from flaxcnn.boxes.matching import (
    match_by_overlap,
    match_cells,
    match_default_boxes,
    match_priors,
)
from flaxcnn.boxes.nms import Detections, Kept, detect, nms, soft_nms
from flaxcnn.boxes.sampling import Sample, sample_balanced

__all__ = [
    "Detections",
    "Kept",
    "Sample",
    "box_area",
    "box_iou",
    "clip_boxes",
    "covered_share",
    "decode_boxes",
    "decode_cells",
    "decode_priors",
    "detect",
    "encode_boxes",
    "encode_cells",
    "encode_priors",
    "fit_priors",
    "from_centers",
    "generalized_box_iou",
    "make_anchors",
    "make_cell_anchors",
    "make_default_boxes",
    "match_by_overlap",
    "match_cells",
    "match_default_boxes",
    "match_priors",
    "nms",
    "paired_iou",
    "sample_balanced",
    "soft_nms",
    "ssd_scales",
    "to_centers",
]
