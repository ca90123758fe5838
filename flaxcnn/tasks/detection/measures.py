"""How well objects were found: by COCO's rules and by PASCAL VOC's, on the host.

`found` and `true` are what an evaluation kept of each image, see `Kept`.
"""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxcnn.errors import UserError

NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""COCO's twelve, in the order of pycocotools; -1 where there are no such objects."""


def check_installed() -> None:
    """Raises UserError unless pycocotools can be imported."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError(
            "task.name: detection is measured by pycocotools, which is missing: pip install "
            "'flaxcnn[detection]'"
        )


class Kept(NamedTuple):
    """Detections and objects of N images, in pixels of their files; -1 of a label is none."""

    boxes: np.ndarray  # float64 [N, D, 4], the surest first
    scores: np.ndarray  # float64 [N, D]
    labels: np.ndarray  # int [N, D]
    true_boxes: np.ndarray  # float64 [N, M, 4]
    true_labels: np.ndarray  # int [N, M]
    true_crowd: np.ndarray  # bool [N, M]
    true_area: np.ndarray  # float64 [N, M]

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> "Kept":
        """From the arrays of `Detection.predict` and `Detection.expected`."""
        scale, shift, size = np.split(np.asarray(arrays["placed"], np.float64)[:, None], 3, axis=-1)

        def to_file(boxes: np.ndarray) -> np.ndarray:
            corners = np.asarray(boxes, np.float64).reshape(*boxes.shape[:2], 2, 2)
            corners = (corners - shift[:, :, None]) / scale[:, :, None]
            return np.clip(corners, 0, size[:, :, None]).reshape(boxes.shape)

        return cls(
            to_file(arrays["boxes"]),
            np.asarray(arrays["scores"], np.float64),
            np.asarray(arrays["labels"]),
            to_file(arrays["true_boxes"]),
            np.asarray(arrays["true_labels"]),
            np.asarray(arrays["true_crowd"]),
            np.asarray(arrays["true_area"], np.float64) / scale.prod(axis=-1),
        )


class Coco(NamedTuple):
    """What pycocotools says."""

    numbers: dict[str, float]  # `NUMBERS`
    class_ap: np.ndarray  # [C]: AP over IoU 0.5 to 0.95; nan for a class without objects
    class_ap50: np.ndarray  # [C]: at IoU 0.5
    precision: np.ndarray  # [101, C]: at IoU 0.5 and recalls 0, 0.01 .. 1


def measure_coco(kept: Kept, classes: int) -> Coco:
    """The twelve numbers of COCO, and the curves behind them, by pycocotools."""
    check_installed()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    common = {
        "info": {},
        "images": [{"id": i} for i in range(len(kept.boxes))],
        "categories": [{"id": c} for c in range(classes)],
    }
    truth: Any = COCO()
    said: Any = COCO()
    truth.dataset = common | {
        "annotations": [
            _annotation(number, image, kept.true_boxes[image, i], int(kept.true_labels[image, i]))
            | {
                "iscrowd": int(kept.true_crowd[image, i]),
                "area": float(kept.true_area[image, i]),
            }
            for number, (image, i) in enumerate(np.argwhere(kept.true_labels >= 0), 1)
        ]
    }
    said.dataset = common | {
        "annotations": [
            _annotation(number, image, kept.boxes[image, i], int(kept.labels[image, i]))
            | {"iscrowd": 0, "score": float(kept.scores[image, i])}
            for number, (image, i) in enumerate(np.argwhere(kept.labels >= 0), 1)
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        said.createIndex()
        evaluation = COCOeval(truth, said, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # of all areas, 100 boxes
    precision = np.where(precision < 0, np.nan, precision)
    return Coco(
        {name: float(x) for name, x in zip(NUMBERS, evaluation.stats, strict=True)},
        precision.mean(axis=(0, 1)),
        precision[0].mean(axis=0),
        precision[0],
    )


def _annotation(number: int, image: Any, box: np.ndarray, label: int) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    sides = [left, top, right - left, bottom - top]
    area = sides[2] * sides[3]
    return {"id": number, "image_id": int(image), "category_id": label, "bbox": sides, "area": area}


def measure_voc(kept: Kept, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Each class's AP [C] as in VOC 2007, of 11 points, and as in VOC 2010 to 2012, of all.

    The rules are those of VOC's development kit: each detection is about the object that it
    overlaps most, right at IoU of 0.5 or more if no surer one was, and not counted if that object
    is difficult (here: a crowd). nan for a class without objects. pycocotools has other rules.
    """
    found = [_average_precision(kept, label) for label in range(classes)]
    points, areas = np.array(found, np.float64).reshape(-1, 2).T
    return points, areas


def _average_precision(kept: Kept, label: int) -> tuple[float, float]:
    wanted = kept.true_labels == label
    objects = int((wanted & ~kept.true_crowd).sum())
    if not objects:
        return np.nan, np.nan
    image, place = np.nonzero(kept.labels == label)
    order = np.argsort(-kept.scores[image, place], kind="stable")
    taken, verdicts = np.zeros(wanted.shape, bool), []
    overlaps: dict[int, np.ndarray] = {}
    for i, j in zip(image[order], place[order], strict=True):
        if i not in overlaps:
            overlaps[i] = match_iou(kept.boxes[i], kept.true_boxes[i])
        iou = np.where(wanted[i], overlaps[i][j], -1)
        best = int(iou.argmax()) if iou.size else 0
        if not iou.size or iou[best] < 0.5:
            verdicts.append(False)
        elif not kept.true_crowd[i, best]:
            verdicts.append(not taken[i, best])
            taken[i, best] = True
    right = np.cumsum(np.array(verdicts, bool))
    recall, precision = right / objects, right / np.arange(1, len(right) + 1)
    points = [precision[recall >= t].max(initial=0) for t in np.arange(11) / 10]
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.mean(points)), float((np.diff(recall, prepend=0) * hull).sum())


def match_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of all boxes [D, 4] with all others [M, 4]: [D, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.maximum(high - low, 0).prod(axis=-1)
    one, other = ((x[:, 2:] - x[:, :2]).prod(axis=-1) for x in (boxes, others))
    union = one[:, None] + other[None] - both
    return both / np.where(union > 0, union, 1)


class Verdicts(NamedTuple):
    """Detections of one image and its objects, matched one to one whatever their classes."""

    of_found: np.ndarray  # int [D]: the object that it found, -1 for none, -2 of a crowd or unsure
    of_true: np.ndarray  # int [M]: the detection that found it, -1 for none, -2 of a crowd or none


def match_objects(kept: Kept, image: int, least_score: float, least_iou: float = 0.5) -> Verdicts:
    """Pairs of detections of at least `least_score` and objects, those of the highest IoU first.

    Of one IoU those of the same class go first. What is in a crowd for half of its area or more
    is left out.
    """
    labels, true = kept.labels[image], kept.true_labels[image]
    crowd = kept.true_crowd[image]
    sure = (labels >= 0) & (kept.scores[image] >= least_score)
    sought = (true >= 0) & ~crowd
    iou = match_iou(kept.boxes[image], kept.true_boxes[image])
    iou = np.where(sure[:, None] & sought[None], iou, -1)
    of_found, of_true = np.where(sure, -1, -2), np.where(sought, -1, -2)
    same = labels[:, None] == true[None]
    pairs = np.argwhere(iou >= least_iou)
    order = np.lexsort([~same[tuple(pairs.T)], -iou[tuple(pairs.T)]]) if len(pairs) else []
    for i, j in pairs[order]:
        if of_found[i] == of_true[j] == -1:
            of_found[i], of_true[j] = j, i
    for j in np.flatnonzero(crowd & (true >= 0)):
        low = np.maximum(kept.boxes[image][:, :2], kept.true_boxes[image, j, :2])
        high = np.minimum(kept.boxes[image][:, 2:], kept.true_boxes[image, j, 2:])
        inside = np.maximum(high - low, 0).prod(axis=-1)
        area = (kept.boxes[image][:, 2:] - kept.boxes[image][:, :2]).prod(axis=-1)
        of_found[(of_found == -1) & (inside >= least_iou * area)] = -2
    return Verdicts(of_found, of_true)


def count_confusions(kept: Kept, classes: int, least_score: float) -> np.ndarray:
    """int64 [C + 1, C + 1]: objects of each class (row) that were taken for each class (column).

    The last row are detections where no object is, the last column objects that were not found.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for image in range(len(kept.boxes)):
        verdicts = match_objects(kept, image, least_score)
        for i, j in enumerate(verdicts.of_found):
            if j >= -1:
                true = kept.true_labels[image, j] if j >= 0 else classes
                counts[true, kept.labels[image, i]] += 1
        missed = kept.true_labels[image][verdicts.of_true == -1]
        np.add.at(counts, (missed, classes), 1)
    return counts


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """The mean of what is a number; 0.0 if nothing is."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
