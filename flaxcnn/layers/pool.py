"""Pooling, channels last, whose gradients compile to elementwise operations.

XLA's gradient of a window maximum is select-and-scatter: slow on CPU, and refused on GPU under
`--xla_gpu_deterministic_ops` (flax#4233). Here a window is a list of taps, one array per position
within the window, and the derivative passes through the first tap that holds the maximum, as
select-and-scatter and PyTorch have it.

The pools over windows take what `flax.linen`'s take: `window_shape` has one size per axis that is
pooled, those before the last one; the axes before them, none or several, are the batch. Numbers may
be NumPy's; one alone as window, with all axes but the first and last, or as stride, holds for every
axis. `padding` is "SAME", "VALID", a number, or a sequence with a number (both sides) or a pair per
axis. A window larger than the image gives an empty result. Means of integers are float32, maxima
keep every dtype; a NaN makes its windows NaN. Heights and widths may be symbolic in `jax.export`.
`jax.experimental.jet` passes through means, but not through maxima: like `jax.nn.relu` they have a
`jax.custom_jvp`, at which it fails (seen with jax 0.7.2 to 0.12.0).
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.dtypes import mean_dtype, promote
from flaxcnn.layers.padding import Padding, Pads, Sizes, as_integer, per_axis, read_padding

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
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
    least = least_value(x.dtype)
    if windows.symbolic:
        return _reduce_windows(x, windows, least, lax.max)
    return _max_of_windows(_pad(x, windows, least), windows.shape, windows.strides)


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
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
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
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
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


class _Windows(NamedTuple):
    """Where the windows lie: the border the caller asked for, and what sticks out of it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    border: Pads
    overhang: tuple[int, ...]  # at the end of each axis; 0 without ceil_mode
    symbolic: bool  # whether a size is a symbol of jax.export


def _place_windows(
    x: Array, window_shape: Sizes, strides: Sizes | None, padding: Padding, ceil_mode: bool
) -> _Windows:
    single = as_integer(window_shape) is not None
    rank = x.ndim - 2 if single else len(np.atleast_1d(window_shape))
    if not 0 < rank < x.ndim:
        raise UserError(f"pooling: no window of {window_shape} fits in an array of {x.ndim} axes")
    shape = per_axis(window_shape, rank, "window_shape")
    strides = per_axis(1 if strides is None else strides, rank, "strides")
    if min(*shape, *strides) < 1:
        raise UserError(f"pooling: window {shape} and strides {strides} must be at least 1")
    sizes = x.shape[-1 - rank : -1]
    border = read_padding(padding, sizes, shape, strides)
    symbolic = any(as_integer(size) is None for size in sizes)
    overhang = (0,) * rank
    if ceil_mode:
        if symbolic:
            raise UserError(f"pooling: ceil_mode needs sizes that are numbers, not {sizes}")
        overhang = tuple(
            _overhang(*axis) for axis in zip(sizes, shape, strides, border, strict=True)
        )
    return _Windows(shape, strides, border, overhang, symbolic)


def _overhang(size: int, window: int, stride: int, border: tuple[int, int]) -> int:
    low, high = border
    last = -(-(size + low + high - window) // stride)
    if last * stride >= size + low:
        last -= 1
    return max(last * stride + window - (size + low + high), 0)


def _pad(x: Array, windows: _Windows, value: float) -> Array:
    pads = [
        (low, high + extra)
        for (low, high), extra in zip(windows.border, windows.overhang, strict=True)
    ]
    if all(pair == (0, 0) for pair in pads):
        return x
    none = [(0, 0, 0)] * (x.ndim - 1 - len(pads))
    config = [*none, *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def _output_size(x: Array, window_shape, strides) -> tuple[int, ...]:
    sizes = x.shape[-1 - len(window_shape) : -1]
    return tuple(
        max((size - window) // stride + 1, 0)
        for size, window, stride in zip(sizes, window_shape, strides, strict=True)
    )


def _taps(x: Array, window_shape, strides) -> list[Array]:
    """Cuts x into one [..., *size', C] array per position within the window, in row-major order."""
    sizes = _output_size(x, window_shape, strides)
    batch, channels = x.shape[: -1 - len(sizes)], x.shape[-1]
    if 0 in sizes:  # no window fits
        return [lax.slice(x, (0,) * x.ndim, (*batch, *sizes, channels))]
    zeros, ones = (0,) * len(batch), (1,) * len(batch)
    reach = [(size - 1) * stride + 1 for size, stride in zip(sizes, strides, strict=True)]
    return [
        lax.slice(
            x,
            (*zeros, *place, 0),
            (*batch, *(i + length for i, length in zip(place, reach, strict=True)), channels),
            (*ones, *strides, 1),
        )
        for place in itertools.product(*map(range, window_shape))
    ]


def _taps_of_tangent(x: Array, window_shape, strides) -> list[Array]:
    """As `_taps`, made to be transposed: windows side by side are split, their gradients joined.

    The gradient is several times as fast as with slices on CPU (docs/adr/0012).
    """
    sizes = _output_size(x, window_shape, strides)
    if window_shape != strides or 0 in sizes:
        return _taps(x, window_shape, strides)
    first = x.ndim - 1 - len(sizes)
    ends = (size * stride for size, stride in zip(sizes, strides, strict=True))
    x = lax.slice(x, (0,) * x.ndim, (*x.shape[:first], *ends, x.shape[-1]))
    within = [first + 2 * i + 1 for i in range(len(sizes))]  # the axes of places in a window
    for axis, size, stride in zip(within, sizes, strides, strict=True):
        # One axis at a time: under explicit sharding a reshape may split no more.
        x = x.reshape(*x.shape[: axis - 1], size, stride, *x.shape[axis:])
    taps = [x]
    for axis, stride in zip(within, strides, strict=True):
        taps = [part for tap in taps for part in lax.split(tap, (1,) * stride, axis=axis)]
    return [lax.squeeze(tap, within) for tap in taps]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max_of_windows(x: Array, window_shape, strides) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, window_shape, strides))


@_max_of_windows.defjvp
def _max_of_windows_jvp(window_shape, strides, primals, tangents):
    (x,), (dx,) = primals, tangents
    y = _max_of_windows(x, window_shape, strides)
    # Which tap of a window it is that the derivative passes through, found once for all of them
    # (docs/adr/0012).
    taps = _taps(x, window_shape, strides)
    counter = jnp.int8 if len(taps) < 128 else jnp.int32
    first = jnp.full(y.shape, len(taps) - 1, counter)
    for index, tap in reversed(list(enumerate(taps[:-1]))):
        first = jnp.where(tap == y, jnp.asarray(index, counter), first)
    terms = [
        jnp.where(first == index, dtap, 0)
        for index, dtap in enumerate(_taps_of_tangent(dx, window_shape, strides))
    ]
    return y, functools.reduce(jnp.add, terms)


def _reduce_windows(x: Array, windows: _Windows, init, reduce) -> Array:
    """By XLA's own operation, which alone takes symbolic sizes whose windows may not fit."""
    batch = x.ndim - 1 - len(windows.shape)
    pads = [(0, 0)] * batch + [*windows.border, (0, 0)]
    ones = (1,) * batch
    window, strides = (*ones, *windows.shape, 1), (*ones, *windows.strides, 1)
    return lax.reduce_window(x, np.asarray(init, x.dtype), reduce, window, strides, pads)


def refuse_complex(x: Array, name: str) -> None:
    """Raises UserError, for `name`, if x is complex."""
    if jnp.iscomplexobj(x):
        raise UserError(f"{name}: complex values are not supported")


def refuse_empty_maps(x: Array, name: str) -> None:
    """Raises UserError, for `name`, if the maps [N, *size, C] have no pixels (PyTorch's rule)."""
    if 0 in x.shape[1:-1]:
        raise UserError(f"{name}: maps of shape {x.shape} have no pixels")


def least_value(dtype) -> bool | int | float:
    """What every value of `dtype` is at least: the neutral element of a maximum."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return False
    return -math.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def _sum_dtype(x: Array):
    return promote(x.dtype, jnp.float32)


def _sum_of_windows(x: Array, windows: _Windows) -> Array:
    x = x.astype(_sum_dtype(x))
    if windows.symbolic:
        return _reduce_windows(x, windows, 0, lax.add)
    x = _pad(x, windows, 0)
    return functools.reduce(jnp.add, _taps_of_tangent(x, windows.shape, windows.strides))


def _divisor(x: Array, windows: _Windows, count_border: bool, dtype) -> Array | int:
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
