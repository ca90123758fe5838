"""Resizing that averages when it shrinks."""

import functools
import math
import operator

import jax.numpy as jnp
import numpy as np

from flaxcnn.data.geometry import Array, Size
from flaxcnn.data.rounding import product


def resize_image(image: Array, size: Size) -> Array:
    """`image` [H, W, C] at another `size` (height, width): float32 [height, width, C].

    Antialiased bilinear, as Pillow's BILINEAR: a pixel is the mean of those around its place,
    weighted by a triangle that reaches one pixel of the coarser of the two images each way.
    """
    for axis, after in enumerate(size):
        if after != image.shape[axis]:
            image = _resize_axis(image, axis, after)
    return image


def _resize_axis(image: Array, axis: int, after: int) -> Array:
    """Tap by tap rather than by a `dot`, which accelerators would round to fewer bits."""
    indices, weights = _find_taps(image.shape[axis], after)
    along = tuple(slice(None) if i == axis else None for i in range(image.ndim))
    taps = (
        product(jnp.take(image, index, axis=axis), jnp.asarray(weight)[along])
        for index, weight in zip(indices, weights, strict=True)
    )
    return functools.reduce(operator.add, taps)


def _find_taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels make each new one, int32 [taps, after], and their weights, which sum to 1."""
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    first = np.floor(centres - reach).astype(np.int32)
    indices = first[None] + np.arange(math.ceil(2 * reach) + 1, dtype=np.int32)[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(indices + 0.5 - centres[None]) / reach)
    weights *= (indices >= 0) & (indices < before)
    weights /= weights.sum(axis=0)
    return indices.clip(0, before - 1), weights.astype(np.float32)
