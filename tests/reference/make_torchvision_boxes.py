"""Writes torchvision_boxes.json: what torchvision's box operators and detection helpers give.

Run by hand where torch and torchvision with its C++ operators are installed (made with torch 2.13.0
and torchvision 0.29.1 on CPU): `python tests/reference/make_torchvision_boxes.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou, nms
from torchvision.ops.boxes import _batched_nms_vanilla

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
SSD_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]


def draw_boxes(rng, count, span, most):
    """Boxes with whole coordinates, of which many overlap equally, and some have no area."""
    corner, sides = rng.integers(0, span, (count, 2)), rng.integers(0, most, (count, 2))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def edge_boxes():
    """Boxes that overlap with the first of ten by tenths: 1/10 as a float32 is above 0.1."""
    boxes = [[100 * i, 0, 100 * i + 10, 10] for i in range(10)]
    boxes += [[100 * i, 0, 100 * i + 10, i + 1] for i in range(10)]
    return np.asarray(boxes, np.float32)


def nms_cases(rng):
    cases = []
    for boxes in (draw_boxes(rng, 160, 40, 30), draw_boxes(rng, 40, 8, 8), edge_boxes()):
        scores = (rng.integers(1, 13, len(boxes)) / 16).astype(np.float32)
        labels = rng.integers(0, 3, len(boxes))
        given = torch.tensor(boxes), torch.tensor(scores)
        cases.append(
            {"boxes": boxes.astype(int).tolist(), "scores": scores.tolist()}
            | {"labels": labels.tolist()}
            | {"picks": {t: nms(*given, t).tolist() for t in THRESHOLDS}}
            | {
                "class_picks": {
                    t: _batched_nms_vanilla(*given, torch.tensor(labels), t).tolist()
                    for t in THRESHOLDS
                }
            }
        )
    return cases


def matching_case(rng):
    iou = rng.integers(0, 11, (5, 60)) / 10 * (rng.random((5, 60)) < 0.5)
    iou[3] *= 0.5  # of which no anchor has enough
    iou = torch.tensor(iou.astype(np.float32))
    apart = iou.clone()
    apart[range(5), range(5)] = 1 - torch.arange(5) / 64  # each box has a best one of its own
    apart[:, 5:] *= 0.9
    return {
        "iou": iou.tolist(),
        "matches": Matcher(0.7, 0.3)(iou).tolist(),
        "keep_best": Matcher(0.7, 0.3, True)(iou).tolist(),
        "apart": apart.tolist(),
        "ssd": SSDMatcher(0.5)(apart).tolist(),
    }


def anchor_cases():
    images = ImageList(torch.zeros(1, 3, 96, 80), [(96, 80)])
    maps = [torch.zeros(1, 1, 12, 10), torch.zeros(1, 1, 5, 3)]
    (anchors,) = AnchorGenerator(((32,), (64, 100)), ((0.5, 1.0, 2.0),) * 2)(images, maps)
    ssd = DefaultBoxGenerator(
        SSD_RATIOS,
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    even = DefaultBoxGenerator([[2], [2, 3]], min_ratio=0.2, max_ratio=0.9)
    images_300 = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    sides = (38, 19, 10, 5, 3, 1)
    (boxes,) = ssd(images_300, [torch.zeros(1, 1, n, n) for n in sides])
    (few,) = even(images, [torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 1, 2)])
    return {
        "rpn": anchors.tolist(),
        "ssd300": {"count": len(boxes), "rows": boxes[::97].tolist()},
        "even": few.tolist(),
    }


def main():
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(draw_boxes(rng, n, 20, 20)) for n in (7, 5))
    a[:, 2:] += 1
    b[:, 2:] += 1
    anchors = torch.tensor(draw_boxes(rng, 7, 20, 20)) + torch.tensor([0, 0, 4, 4])
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    offsets = torch.tensor(rng.normal(0, 4, (7, 4)).astype(np.float32))
    golden = {
        "nms": nms_cases(rng),
        "matching": matching_case(rng),
        "anchors": anchor_cases(),
        "a": a.tolist(),
        "b": b.tolist(),
        "iou": box_iou(a, b).tolist(),
        "giou": generalized_box_iou(a, b).tolist(),
        "around": anchors.tolist(),
        "encoded": coder.encode_single(a, anchors).tolist(),
        "offsets": (offsets * 5).tolist(),
        "decoded": coder.decode_single(offsets * 5, anchors).tolist(),
    }
    text = json.dumps(golden, separators=(",", ":")).replace('"nms"', '\n"nms"')
    Path(__file__).with_name("torchvision_boxes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
