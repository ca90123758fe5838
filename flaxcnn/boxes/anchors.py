"""Anchors, default boxes and priors: NumPy constants that depend on sizes alone.

Anchors are float32 [P, 4], corners in pixels, in the order of the maps that predict them: map by
map, rows from top to bottom, columns from left to right, then the boxes of a place.
"""

import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # height, width

_V2_VOC = (1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071)
_V2_COCO = (
    *(0.57273, 0.677385, 1.87446, 2.06253, 3.33843),
    *(5.47434, 7.88282, 3.52778, 9.77052, 9.16828),
)


def _from_cells(sides: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Pairs of (width, height) in pixels from Darknet's, in cells of 32 pixels."""
    return tuple((32 * w, 32 * h) for w, h in zip(sides[::2], sides[1::2], strict=True))


# Widths and heights in pixels of images of 416, by k-means over a data set's boxes; v3's by map.
YOLO_V2_VOC = _from_cells(_V2_VOC)
YOLO_V2_COCO = _from_cells(_V2_COCO)
YOLO_V3_COCO = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),  # stride 8
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),  # 16
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),  # 32
)
YOLO_V3_TINY_COCO = (
    ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0)),  # stride 16
    ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),  # 32
)

# SSD300's six maps, from 38 x 38 to 1 x 1.
SSD300_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
SSD300_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SSD300_STRIDES = (8, 16, 32, 64, 100, 300)
SSD300_MAPS = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))


def make_cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """The anchors of one place, about (0, 0): float32 [ratios * sizes, 4].

    Each of `sizes` (the root of the area, in pixels) in each of `ratios` (height / width), rounded
    to whole pixels, as torchvision's `AnchorGenerator`; ratios vary slowest.
    """
    height = np.sqrt(np.asarray(ratios, np.float32))
    width = 1 / height
    scale = np.asarray(sizes, np.float32)
    w, h = ((side[:, None] * scale).reshape(-1) for side in (width, height))
    return np.round(np.stack([-w, -h, w, h], axis=1) / 2)


def make_anchors(
    size: Size,
    maps: Sequence[Size],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[np.ndarray]:
    """RPN's anchors of each map (Ren et al. 2015; one size a map for FPN, Lin et al. 2017).

    For an image of `size` and maps of sizes `maps`, each with `make_cell_anchors(sizes[i], ratios)`
    at its places: a list of float32 [rows * columns * A, 4]. As in torchvision, the first place is
    (0, 0) and the stride is size // map.
    """
    anchors = []
    for (rows, columns), of_map in zip(maps, sizes, strict=True):
        y, x = np.mgrid[:rows, :columns]
        y, x = y * (size[0] // rows), x * (size[1] // columns)
        places = np.stack([x, y, x, y], axis=-1).astype(np.float32)
        cell = make_cell_anchors(of_map, ratios)
        anchors.append((places[:, :, None] + cell).reshape(-1, 4))
    return anchors


def make_default_boxes(
    size: Size,
    maps: Sequence[Size] = SSD300_MAPS,
    *,
    scales: Sequence[float] = SSD300_SCALES,
    ratios: Sequence[Sequence[float]] = SSD300_RATIOS,
    strides: Sequence[float] | None = SSD300_STRIDES,
) -> np.ndarray:
    """SSD's default boxes (Liu et al. 2016, section 2.2): float32 [P, 4]; 8,732 for SSD300.

    Map k has, at each place, squares of scale s_k and sqrt(s_k s_{k+1}), then for each of its
    ratios a the boxes (s_k sqrt(a), s_k / sqrt(a)) and its turned one; scales are shares of the
    image's sides, one more than maps, and sides are no longer than the image's. Centres are
    (i + 0.5) `strides[k]` pixels apart from the corner or, without strides, evenly over the image.
    Scales, order and strides are torchvision's `ssd300_vgg16`, after the authors' Caffe files; the
    paper's own scales are `ssd_scales`.
    """
    boxes = []
    for k, (rows, columns) in enumerate(maps):
        scale, between = scales[k], math.sqrt(scales[k] * scales[k + 1])
        sides = [(scale, scale), (between, between)]
        for ratio in ratios[k]:
            root = math.sqrt(ratio)
            sides += [(scale * root, scale / root), (scale / root, scale * root)]
        sides = np.minimum(np.asarray(sides, np.float32), 1)
        across = columns if strides is None else size[1] / strides[k]
        down = rows if strides is None else size[0] / strides[k]
        y, x = np.mgrid[:rows, :columns] + 0.5
        centers = np.stack([x / across, y / down], axis=-1).astype(np.float32)[:, :, None]
        corners = [centers - sides / 2, centers + sides / 2]
        boxes.append(np.concatenate(corners, axis=-1).reshape(-1, 4))
    height, width = size
    return np.concatenate(boxes) * np.asarray([width, height, width, height], np.float32)


def ssd_scales(maps: int, least: float = 0.2, most: float = 0.9) -> tuple[float, ...]:
    """Scales evenly from `least` to `most` for each map, and 1 (Liu et al. 2016, equation 4).

    For SSD300 the paper adds a map of scale 0.1 in front (section 3.1).
    """
    step = (most - least) / (maps - 1) if maps > 1 else 0
    return (*(least + step * k for k in range(maps)), 1.0)


def fit_priors(
    sides: np.ndarray, count: int, seed: int = 0, rounds: int = 300
) -> tuple[np.ndarray, float]:
    """`count` priors for boxes of widths and heights `sides` [N, 2], by k-means on IoU.

    The distance is 1 - IoU of boxes with one centre (Redmon and Farhadi 2017, section 2); a prior
    is the mean of its boxes. The first ones are drawn by k-means++ (Arthur and Vassilvitskii 2007).

    Returns:
        Priors float32 [count, 2] from the smallest to the largest area, and the mean over the boxes
        of the IoU with the best one.
    """
    sides = np.asarray(sides, np.float64)
    if len(np.unique(sides, axis=0)) < count:
        raise ValueError(f"{count} priors need as many different boxes")
    rng = np.random.default_rng(seed)
    priors = sides[rng.integers(len(sides))][None]
    while len(priors) < count:
        chance = np.square(1 - size_iou(sides, priors).max(1))
        priors = np.concatenate(
            [priors, sides[rng.choice(len(sides), p=chance / chance.sum())][None]]
        )
    of = np.full(len(sides), -1)
    for _ in range(rounds):
        nearest = size_iou(sides, priors).argmax(1)
        if (nearest == of).all():
            break
        of = nearest
        members = [sides[of == k] for k in range(count)]
        priors = np.stack(
            [m.mean(0) if len(m) else p for m, p in zip(members, priors, strict=True)]
        )
    priors = priors[np.argsort(priors.prod(1), kind="stable")]
    return priors.astype(np.float32), float(size_iou(sides, priors).max(1).mean())


def size_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of widths and heights [N, 2] with others [M, 2], as of boxes with one centre: [N, M]."""
    shared = np.minimum(a[:, None], b[None]).prod(-1)
    return shared / (a.prod(-1)[:, None] + b.prod(-1)[None] - shared)
