"""Detectors that are compared with torchvision's: weights and images that both sides draw alike."""

from pathlib import Path

import numpy as np
from draw import draw_images, draw_weight

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 9  # without the background
SIDES = {"ssd300_vgg16": (300, 300), "mask_rcnn_resnet50_fpn": (128, 192)}
EVERY = {"ssd300_vgg16": 41, "mask_rcnn_resnet50_fpn": 17}  # of many anchors one is kept
# torchvision's arguments, and ours.
FEW = {
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 40,
    "box_detections_per_img": 8,
    "box_score_thresh": 0.05,
}
OURS = {"before_nms": (200, 200), "num_proposals": (40, 40), "max_detections": 8}


def draw_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor by torchvision's name; box offsets are small, as those of a trained network."""
    gain = 2.0 if "extra" in name or "features" in name else 1.0
    value = draw_weight(name, shape, int(np.prod(shape[1:])), gain)
    return value * np.float32(0.1) if "bbox_pred" in name else value


def draw_image(name: str) -> np.ndarray:
    """One image, [1, H, W, 3]."""
    return draw_images(1, *SIDES[name], 3)
