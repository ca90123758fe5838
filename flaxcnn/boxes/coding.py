"""Boxes as the numbers that networks give, and back.

Networks learn how a box differs from an anchor, or from a cell of a grid and a prior. Each pair of
functions here is the way there and the way back. Grids are [..., rows, columns, boxes of a cell],
over images of `size` (height, width).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.boxes.geometry import from_centers, to_centers

Array = jax.Array
Size = tuple[int, int]
Weights = tuple[float, float, float, float]

UNIT_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)  # of RPN
BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # of Faster R-CNN's second stage and of SSD
MOST_GROWTH = math.log(1000 / 16)  # logarithm of a side's growth: the limit in torchvision


def encode_boxes(boxes: Array, anchors: Array, weights: Weights = UNIT_WEIGHTS) -> Array:
    """Offsets [..., 4] of boxes from their anchors, corners [..., 4] both.

    Girshick et al. 2014 (R-CNN), equations 6 to 9, times `weights`: how far the centre is away in
    sides of the anchor, and the logarithm of the ratio of sides. SSD's variances are 1 / weights.
    Where a box has a side of 0, as padding has, it counts as 1 pixel.
    """
    box, anchor = to_centers(boxes), to_centers(anchors)
    sides = jnp.where(box[..., 2:] > 0, box[..., 2:], 1)
    away = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    offsets = jnp.concatenate([away, jnp.log(sides / anchor[..., 2:])], axis=-1)
    return offsets * _as_row(weights, offsets)


def decode_boxes(
    offsets: Array,
    anchors: Array,
    weights: Weights = UNIT_WEIGHTS,
    most_growth: float = MOST_GROWTH,
) -> Array:
    """Boxes as corners [..., 4]: the way back of `encode_boxes`.

    A side grows to at most exp(`most_growth`) times the anchor's.
    """
    anchor = to_centers(anchors)
    offsets = offsets / _as_row(weights, offsets)
    center = offsets[..., :2] * anchor[..., 2:] + anchor[..., :2]
    sides = jnp.exp(jnp.minimum(offsets[..., 2:], most_growth)) * anchor[..., 2:]
    return from_centers(jnp.concatenate([center, sides], axis=-1))


def encode_cells(boxes: Array, size: Size) -> Array:
    """What YOLOv1 says of boxes [..., R, C, B, 4], corners, each in the cell of its centre.

    (x, y) from the top left corner of the cell, in cells; the square roots of (width, height) as
    shares of the image's (Redmon et al. 2016, section 2.2, as in Darknet with `sqrt=1`).
    """
    box = to_centers(boxes)
    cells, stride = _cells(boxes.shape, size)
    inside = box[..., :2] / stride - cells
    sides = box[..., 2:] / _as_row((size[1], size[0]), box)
    return jnp.concatenate([inside, _root(sides)], axis=-1)


def decode_cells(values: Array, size: Size) -> Array:
    """Boxes as corners [..., R, C, B, 4]: the way back of `encode_cells`."""
    cells, stride = _cells(values.shape, size)
    center = (values[..., :2] + cells) * stride
    sides = jnp.square(values[..., 2:]) * _as_row((size[1], size[0]), values)
    return from_centers(jnp.concatenate([center, sides], axis=-1))


def encode_priors(boxes: Array, priors: Array, size: Size) -> Array:
    """What YOLOv2 and v3 say of boxes [..., R, C, A, 4], corners, each in the cell of its centre.

    `priors` are A widths and heights [A, 2] in pixels. (sigmoid(tx), sigmoid(ty), tw, th) of
    Redmon and Farhadi 2017 (arXiv:1612.08242), section 2: the first two in cells, the logarithm of
    sides over the prior's. Where a box has a side of 0, as padding has, it counts as 1 pixel.
    """
    box = to_centers(boxes)
    cells, stride = _cells(boxes.shape, size)
    inside = box[..., :2] / stride - cells
    sides = jnp.where(box[..., 2:] > 0, box[..., 2:], 1)
    return jnp.concatenate([inside, jnp.log(sides / _fill(priors, box))], axis=-1)


def decode_priors(values: Array, priors: Array, size: Size, most_growth: float = 8.0) -> Array:
    """Boxes as corners [..., R, C, A, 4] from (tx, ty, tw, th), of which tx and ty are logits.

    A side grows to at most exp(`most_growth`) times the prior's, which stays finite.
    """
    cells, stride = _cells(values.shape, size)
    center = (jax.nn.sigmoid(values[..., :2]) + cells) * stride
    sides = jnp.exp(jnp.minimum(values[..., 2:], most_growth)) * _fill(priors, values)
    return from_centers(jnp.concatenate([center, sides], axis=-1))


def _cells(shape: tuple[int, ...], size: Size) -> tuple[Array, Array]:
    """Of a grid [..., R, C, B, 4]: (column, row) of each cell, and pixels of a cell (x, y)."""
    rows, columns = shape[-4:-2]
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    cells = np.stack([x, y], axis=-1)[:, :, None]
    stride = np.asarray([size[1] / columns, size[0] / rows], np.float32)
    lead = (1,) * (len(shape) - 4)
    return jnp.asarray(cells.reshape(lead + cells.shape)), jnp.asarray(
        stride.reshape(*lead, 1, 1, 1, 2)
    )


def _fill(priors: Array, like: Array) -> Array:
    """[A, 2] with leading axes of 1, to the rank of `like`."""
    return jnp.asarray(priors, like.dtype).reshape((1,) * (like.ndim - 2) + priors.shape)


def _as_row(values: tuple[float, ...], like: Array) -> Array:
    return jnp.asarray(values, like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _root(x: Array) -> Array:
    """The square root; 0 and no gradient where there is none."""
    some = x > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), 0)
