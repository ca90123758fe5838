"""Pooling, channels last: fast on CPU, on a TPU, and deterministic on a GPU.

XLA's gradient of a window maximum is select-and-scatter: what a TPU does best, but slow on CPU, and
refused on GPU under `--xla_gpu_deterministic_ops` (flax#4233). Off the TPU a window is a list of
taps, one array per position within the window (`pool_max.py`, docs/adr/0014); means and sums are
made of taps everywhere, as elementwise operations. The derivative of a maximum passes through the
first tap that holds it, as PyTorch and Flax have it, and through none if the maximum is minus
infinity or not a number.

The pools over windows take what `flax.linen`'s take: `window_shape` has one size per axis that is
pooled, those before the last one; the axes before them, none or several, are the batch. Numbers may
be NumPy's; one alone as window, with all axes but the first and last, or as stride, holds for every
axis. `padding` is "SAME", "VALID", a number, or a sequence with a number (both sides) or a pair per
axis. A window larger than the image gives an empty result. Means of integers are float32, maxima
keep every dtype; a NaN makes its windows NaN. Heights and widths may be symbolic in `jax.export`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.dtypes import mean_dtype, promote
from flaxcnn.layers.padding import Padding, Sizes, per_axis
from flaxcnn.layers.plain import is_plain
from flaxcnn.layers.pool_max import max_of_windows
from flaxcnn.layers.pool_windows import (
    Windows,
    has_window,
    least_value,
    place_windows,
    reduce_windows,
    taps_of_tangent,
)

Array = jax.Array


def max_pool(
    x: Array,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    ceil_mode: bool = False,
) -> Array:
    """Maximum over windows of [..., *size, C]; arguments as in `flax.linen.max_pool`.

    Strides are 1 unless given. The border counts as the least value there is, minus infinity for
    floats, and the derivative goes to the first maximum of a window in row-major order.
    `ceil_mode` keeps the windows that stick out at the end of an axis, as in Caffe and PyTorch;
    none starts beyond the image and its left padding. Raises UserError for complex values.
    """
    refuse_complex(x, "max_pool")
    windows = place_windows(x, window_shape, strides, padding, ceil_mode)
    if windows.symbolic:
        return reduce_windows(x, windows, least_value(x.dtype), lax.max)
    return max_of_windows(x, windows)


def avg_pool(
    x: Array,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    ceil_mode: bool = False,
) -> Array:
    """Mean over windows of [..., *size, C]; arguments as in `flax.linen.avg_pool`.

    Strides are 1 unless given. The border counts as zeros, or not at all if `count_include_pad` is
    false. `ceil_mode` keeps the windows that stick out at the end of an axis, as in PyTorch; what
    sticks out of the border never counts. Half precision is summed in float32.
    """
    windows = place_windows(x, window_shape, strides, padding, ceil_mode)
    total = _sum_of_windows(x, windows)
    return (total / _divisor(x, windows, count_include_pad, total.dtype)).astype(mean_dtype(x))


def l2_pool(
    x: Array,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    ceil_mode: bool = False,
) -> Array:
    """Root of the sum of squares over windows of [..., *size, C] (`torch.nn.LPPool2d`, p=2).

    Strides are 1 unless given; the border counts as zeros. As in PyTorch, a window that
    `ceil_mode` lets stick out is scaled up to the area of a whole one. Half precision is summed
    in float32. Unlike PyTorch's, which is not a number, the derivative at a window of zeros is 0.
    Raises UserError for complex values.
    """
    refuse_complex(x, "l2_pool")
    windows = place_windows(x, window_shape, strides, padding, ceil_mode)
    wide = x.astype(_sum_dtype(x))
    total = _sum_of_windows(wide * wide, windows)
    if ceil_mode:
        total *= math.prod(windows.shape) / _divisor(x, windows, True, total.dtype)
    positive = total > 0
    root = jnp.sqrt(
        jnp.where(positive, total, 1)
    )  # the inner select keeps 0 * inf out of gradients
    return jnp.where(positive, root, 0).astype(mean_dtype(x))


def channel_max_pool(x: Array, group_size: int) -> Array:
    """Maximum over groups of adjacent channels: [..., C] -> [..., C / group_size].

    Depthwise max pooling (Geron 2019, chapter 14); the derivative goes to the first maximum.
    Raises UserError unless `group_size` divides C.
    """
    channels = x.shape[-1]
    if group_size < 1 or channels % group_size:
        raise UserError(f"channel_max_pool: group_size {group_size} does not divide {channels}")
    if is_plain():
        return x.reshape(*x.shape[:-1], channels // group_size, group_size).max(-1)
    return max_pool(x[..., None], (group_size,), (group_size,)).squeeze(-1)


def adaptive_avg_pool(x: Array, output_size: Sizes) -> Array:
    """Mean over a grid of bins: [N, *size, C] -> [N, *output_size, C].

    As `torch.nn.AdaptiveAvgPool2d`: bin i of n along L pixels goes from floor(i L / n) to
    ceil((i + 1) L / n), so that bins overlap unless n divides L. Half precision is summed in
    float32. Raises UserError for no bins, and for maps without a pixel.
    """
    refuse_empty_maps(x, "adaptive_avg_pool")
    y = x.astype(_sum_dtype(x))
    bins_of_axes = per_axis(output_size, x.ndim - 2, "adaptive_avg_pool: output_size")
    if min(bins_of_axes, default=1) < 1:
        raise UserError(f"adaptive_avg_pool: output_size is {output_size}, and must be at least 1")
    for axis, bins in enumerate(bins_of_axes, start=1):
        size = y.shape[axis]
        if size != bins:
            edges = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
            means = [lax.slice_in_dim(y, *edge, axis=axis).mean(axis) for edge in edges]
            y = jnp.stack(means, axis)
    return y.astype(mean_dtype(x))


def global_avg_pool(x: Array) -> Array:
    """Mean over each map: [N, *size, C] -> [N, C]. Raises UserError for maps without a pixel."""
    refuse_empty_maps(x, "global_avg_pool")
    return x.mean(tuple(range(1, x.ndim - 1)))


def global_max_pool(x: Array) -> Array:
    """Maximum of each map: [N, *size, C] -> [N, C]; the derivative goes to the first maximum.

    Raises UserError for complex values, and for maps without a pixel.
    """
    refuse_complex(x, "global_max_pool")
    refuse_empty_maps(x, "global_max_pool")
    x = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    first = x.argmax(1, keepdims=True)
    position = lax.broadcasted_iota(first.dtype, x.shape, 1)
    return jnp.where(position == first, x, jnp.zeros_like(x)).sum(1, dtype=x.dtype)


def refuse_complex(x: Array, name: str) -> None:
    """Raises UserError, for `name`, if x is complex."""
    if jnp.iscomplexobj(x):
        raise UserError(f"{name}: complex values are not supported")


def refuse_empty_maps(x: Array, name: str) -> None:
    """Raises UserError, for `name`, if the maps [N, *size, C] have no pixels (PyTorch's rule)."""
    if 0 in x.shape[1:-1]:
        raise UserError(f"{name}: maps of shape {x.shape} have no pixels")


def _sum_dtype(x: Array):
    return promote(x.dtype, jnp.float32)


def _sum_of_windows(x: Array, windows: Windows) -> Array:
    x = x.astype(_sum_dtype(x))
    if windows.symbolic or (is_plain() and has_window(x, windows)):
        return reduce_windows(x, windows, 0, lax.add)
    return functools.reduce(jnp.add, taps_of_tangent(x, windows))


def _divisor(x: Array, windows: Windows, count_border: bool, dtype) -> Array | int:
    """Counts the places of each window that lie in the image (and its border): [1, *size', 1]."""
    if count_border and not any(windows.overhang):
        return math.prod(windows.shape)
    rank = len(windows.shape)
    sizes = x.shape[-1 - rank : -1]
    batch = (1,) * (x.ndim - 1 - rank)
    if windows.symbolic:
        return _sum_of_windows(jnp.ones((*batch, *sizes, 1), dtype), windows)
    axes = zip(sizes, *windows[:4], strict=True)
    counts = functools.reduce(
        np.multiply.outer, [_count_places(*axis, count_border=count_border) for axis in axes]
    )
    return jnp.asarray(counts.reshape(*batch, *counts.shape, 1), dtype)


def _count_places(size, window, stride, border, overhang, count_border: bool) -> np.ndarray:
    low, high = border
    place = np.arange(-low, size + high + overhang)
    counted = place < size + high if count_border else (0 <= place) & (place < size)
    starts = range(0, len(place) - window + 1, stride)
    return np.array([counted[start : start + window].sum() for start in starts], int)
