"""Areas, overlaps and forms of boxes.

A box is float32 [..., 4]: left, top, right and bottom (x1, y1, x2, y2) in pixels, counted from the
top left corner of the image, where the centre of the first pixel is (0.5, 0.5). So a box is
x2 - x1 wide, without a pixel more. Names and values are those of `torchvision.ops`, but for boxes
without an area: an overlap with nothing is 0 here, not 0 / 0.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_BEYOND = 1e30


def _product(a: Array, b: Array) -> Array:
    """`a * b`, rounded before anything is added to it: see `data/rounding.py`."""
    return jnp.clip(a * b, -_BEYOND, _BEYOND)


def box_area(boxes: Array) -> Array:
    """[..., 4] -> [...], in square pixels."""
    return _product(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def _intersection(a: Array, b: Array) -> Array:
    """Of boxes of shapes that broadcast: the area that both cover."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(sides, 0)
    return _product(sides[..., 0], sides[..., 1])


def _union(a: Array, b: Array, intersection: Array) -> Array:
    return box_area(a) + box_area(b) - intersection


def _ratio(part: Array, whole: Array) -> Array:
    """`part / whole`, 0 where `whole` is none; its gradient is finite there too."""
    some = whole > 0
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)


def paired_iou(a: Array, b: Array) -> Array:
    """Intersection over union of each box of `a` with its own of `b`: [..., 4] -> [...].

    Leading axes of length 1 broadcast.
    """
    intersection = _intersection(a, b)
    return _ratio(intersection, _union(a, b, intersection))


def box_iou(a: Array, b: Array) -> Array:
    """Intersection over union of all with all: [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def covered_share(a: Array, b: Array) -> Array:
    """The share of each box of `a` that one of `b` covers: [N, 4], [M, 4] -> [N, M].

    With leading axes as `box_iou`. It is what pycocotools compares with a crowd's box.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    return _ratio(_intersection(a, b), box_area(a))


def generalized_box_iou(a: Array, b: Array) -> Array:
    """GIoU in -1..1 (Rezatofighi et al. 2019, algorithm 1): [..., N, 4], [..., M, 4] -> [N, M].

    IoU, less the share of the smallest box around both that neither covers.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    intersection = _intersection(a, b)
    union = _union(a, b, intersection)
    around = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    hull = _product(around[..., 0], around[..., 1])
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip_boxes(boxes: Array, size: tuple[int, int]) -> Array:
    """Boxes [..., 4], cut at the borders of an image of `size` (height, width)."""
    height, width = size
    most = jnp.asarray([width, height, width, height], boxes.dtype)
    return jnp.clip(boxes, 0, most.reshape((1,) * (boxes.ndim - 1) + (4,)))


def to_centers(boxes: Array) -> Array:
    """Corners (x1, y1, x2, y2) to (x, y, width, height), x and y of the centre: [..., 4]."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.concatenate([boxes[..., :2] + sides / 2, sides], axis=-1)


def from_centers(boxes: Array) -> Array:
    """The way back of `to_centers`: [..., 4]."""
    half = boxes[..., 2:] / 2
    return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def paired_size_iou(a: Array, b: Array) -> Array:
    """IoU of widths and heights [..., 2] with others, as if both boxes had one centre: [...]."""
    intersection = jnp.minimum(a, b).prod(-1)
    return _ratio(intersection, a.prod(-1) + b.prod(-1) - intersection)
