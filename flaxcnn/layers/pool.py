"""Pooling in NHWC whose gradients compile to elementwise operations.

XLA's gradient of a window maximum is select-and-scatter: slow on CPU, and refused on GPU under
`--xla_gpu_deterministic_ops` (flax#4233). Here a window is a list of taps, one array per position
within the window, and the derivative passes through the first tap that holds the maximum, as
select-and-scatter and PyTorch have it. Regions of interest are masks for the same reason: slices
at computed places would scatter their gradient.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.errors import UserError

Array = jax.Array
Padding = str | int | Sequence[tuple[int, int]]


def max_pool(
    x: Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
    ceil_mode: bool = False,
) -> Array:
    """Maximum over windows of images [N, H, W, C]; arguments as in `flax.linen.max_pool`.

    Strides are 1 unless given; `padding` may be a number of pixels on every side. The border
    counts as minus infinity, and the derivative goes to the first maximum of a window in row-major
    order. `ceil_mode` keeps the windows that stick out at the bottom and right, as in Caffe and
    PyTorch; none starts beyond the image and its left padding.
    """
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
    return _max_of_windows(_pad(x, windows, -jnp.inf), windows.shape, windows.strides)


def avg_pool(
    x: Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    ceil_mode: bool = False,
) -> Array:
    """Mean over windows of images [N, H, W, C]; arguments as in `flax.linen.avg_pool`.

    Strides are 1 unless given; `padding` may be a number of pixels on every side. The border
    counts as zeros, or not at all if `count_include_pad` is false. `ceil_mode` keeps the windows
    that stick out at the bottom and right, as in PyTorch; what sticks out of the border never
    counts. Half precision is summed in float32.
    """
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
    total = _sum_of_windows(x, windows)
    return (total / _divisor(x, windows, count_include_pad, total.dtype)).astype(x.dtype)


def l2_pool(
    x: Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
    ceil_mode: bool = False,
) -> Array:
    """Root of the sum of squares over windows of images [N, H, W, C] (`torch.nn.LPPool2d`, p=2).

    Strides are 1 unless given; the border counts as zeros. As in PyTorch, a window that
    `ceil_mode` lets stick out is scaled up to the area of a whole one. Half precision is summed
    in float32. Unlike PyTorch's, which is not a number, the derivative at a window of zeros is 0.
    """
    windows = _place_windows(x, window_shape, strides, padding, ceil_mode)
    wide = x.astype(_sum_dtype(x))
    total = _sum_of_windows(wide * wide, windows)
    if ceil_mode:
        area = windows.shape[0] * windows.shape[1]
        total *= area / _divisor(x, windows, True, total.dtype)
    positive = total > 0
    root = jnp.sqrt(
        jnp.where(positive, total, 1)
    )  # the inner select keeps 0 * inf out of gradients
    return jnp.where(positive, root, 0).astype(x.dtype)


def channel_max_pool(x: Array, group_size: int) -> Array:
    """Maximum over groups of adjacent channels: [N, H, W, C] -> [N, H, W, C / group_size].

    Depthwise max pooling (Geron 2019, chapter 14); the derivative goes to the first maximum.
    Raises UserError unless `group_size` divides C.
    """
    *places, channels = x.shape
    if group_size < 1 or channels % group_size:
        raise UserError(f"channel_max_pool: group_size {group_size} does not divide {channels}")
    x = x.reshape(1, -1, channels, 1)
    return max_pool(x, (1, group_size), (1, group_size)).reshape(*places, channels // group_size)


def adaptive_avg_pool(x: Array, output_size: tuple[int, int]) -> Array:
    """Mean over a grid of bins: [N, H, W, C] -> [N, *output_size, C].

    As `torch.nn.AdaptiveAvgPool2d`: bin i of n along L pixels goes from floor(i L / n) to
    ceil((i + 1) L / n), so that bins overlap unless n divides L. Half precision is summed in
    float32.
    """
    y = x.astype(_sum_dtype(x))
    for axis, bins in ((1, output_size[0]), (2, output_size[1])):
        size = y.shape[axis]
        if size != bins:
            edges = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
            means = [lax.slice_in_dim(y, *edge, axis=axis).mean(axis) for edge in edges]
            y = jnp.stack(means, axis)
    return y.astype(x.dtype)


def global_avg_pool(x: Array) -> Array:
    """Mean over each map: [N, H, W, C] -> [N, C]."""
    return x.mean((1, 2))


def global_max_pool(x: Array) -> Array:
    """Maximum of each map: [N, H, W, C] -> [N, C]; the derivative goes to the first maximum."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = x.argmax(1, keepdims=True)
    position = lax.broadcasted_iota(first.dtype, x.shape, 1)
    return jnp.where(position == first, x, 0).sum(1)


def roi_max_pool(
    x: Array, boxes: Array, output_size: tuple[int, int], spatial_scale: float = 1.0
) -> Array:
    """Maximum over a grid of bins in each region of interest (Fast R-CNN, Girshick 2015).

    Pools features [N, H, W, C] in boxes [R, 5] to [R, *output_size, C]. A box is (batch index, x1,
    y1, x2, y2) in pixels of the image, ends included; `spatial_scale` takes pixels to features
    (1/16 in VGG-16). Coordinates are rounded, bins grown to whole features and clipped to the map
    as in `torchvision.ops.roi_pool`, but with exact integer bin edges, where torchvision's float32
    ones are one feature off at a few sizes (57 into 7 bins). An empty bin is 0, and so is every bin
    of a box whose batch index is none, such as -1 in a list filled up to a static length. Boxes get
    no gradient; that of x goes to the first maximum of each bin.
    """
    scaled = boxes[:, 1:].astype(jnp.float32) * spatial_scale
    corners = lax.round(scaled, lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32)

    @jax.checkpoint  # else every box would keep its masks for the gradient
    def pool(image: Array, corners: Array) -> Array:
        x1, y1, x2, y2 = corners
        in_rows = _bin_masks(y1, y2, output_size[0], x.shape[1])
        in_cols = _bin_masks(x1, x2, output_size[1], x.shape[2])
        is_image = jnp.arange(x.shape[0]) == image
        features = jnp.where(is_image[:, None, None, None], x, 0).sum(0)
        # Columns before rows, so that of equal maxima the first in row-major order wins.
        bins = _max_where(_max_where(features, in_cols), in_rows)
        nonempty = in_rows.any(1)[:, None] & in_cols.any(1)[None]
        return jnp.where(nonempty[..., None], bins, 0)

    return lax.map(lambda box: pool(*box), (boxes[:, 0].astype(jnp.int32), corners))


class _Windows(NamedTuple):
    """Where the windows lie: the border the caller asked for, and what sticks out of it."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    border: tuple[tuple[int, int], ...]
    overhang: tuple[int, ...]  # below and to the right; 0 without ceil_mode


def _place_windows(
    x: Array,
    shape: tuple[int, int],
    strides: tuple[int, int] | None,
    padding: Padding,
    ceil_mode: bool,
) -> _Windows:
    strides = strides or (1, 1)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], shape, strides, padding)
    elif isinstance(padding, int):
        padding = ((padding, padding),) * 2
    border = tuple((int(low), int(high)) for low, high in padding)
    overhang = (0, 0)
    if ceil_mode:
        overhang = tuple(
            _overhang(*axis) for axis in zip(x.shape[1:3], shape, strides, border, strict=True)
        )
    return _Windows(shape, strides, border, overhang)


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
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _taps(x: Array, window_shape, strides) -> list[Array]:
    """Cuts x into one [N, H', W', C] array per position within the window, in row-major order."""
    n, height, width, channels = x.shape
    rows, cols = (
        (size - window) // stride + 1
        for size, window, stride in zip((height, width), window_shape, strides, strict=True)
    )
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (n, i + (rows - 1) * strides[0] + 1, j + (cols - 1) * strides[1] + 1, channels),
            (1, *strides, 1),
        )
        for i, j in itertools.product(range(window_shape[0]), range(window_shape[1]))
    ]


def _taps_of_tangent(x: Array, window_shape, strides) -> list[Array]:
    """As `_taps`, made to be transposed: windows side by side are split, their gradients joined.

    The gradient of a 2x2 maximum is 4.5 times as fast as with slices (128 examples of 24x24x64,
    2 CPU cores).
    """
    if window_shape != strides:
        return _taps(x, window_shape, strides)
    n, height, width, channels = x.shape
    rows, cols = height // strides[0], width // strides[1]
    x = x[:, : rows * strides[0], : cols * strides[1]]
    x = x.reshape(n, rows, strides[0], cols, strides[1], channels)
    return [
        tap.reshape(n, rows, cols, channels)
        for row in lax.split(x, (1,) * strides[0], axis=2)
        for tap in lax.split(row, (1,) * strides[1], axis=4)
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max_of_windows(x: Array, window_shape, strides) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, window_shape, strides))


@_max_of_windows.defjvp
def _max_of_windows_jvp(window_shape, strides, primals, tangents):
    (x,), (dx,) = primals, tangents
    y = _max_of_windows(x, window_shape, strides)
    # Which tap of a window it is that the derivative passes through, found once for all of them:
    # 3x3 / 2 in 12 ms, not 36, forward and backward (8 examples of 114x114x64, 2 CPU cores).
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


def _sum_dtype(x: Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def _sum_of_windows(x: Array, windows: _Windows) -> Array:
    x = _pad(x.astype(_sum_dtype(x)), windows, 0)
    return functools.reduce(jnp.add, _taps_of_tangent(x, windows.shape, windows.strides))


def _divisor(x: Array, windows: _Windows, count_border: bool, dtype) -> Array | int:
    """Counts the places of each window that lie in the image (and its border): [1, H', W', 1]."""
    if count_border and not any(windows.overhang):
        return windows.shape[0] * windows.shape[1]
    axes = zip(x.shape[1:3], *windows, strict=True)
    rows, cols = (_count_places(*axis, count_border=count_border) for axis in axes)
    return jnp.asarray(np.outer(rows, cols)[None, :, :, None], dtype)


def _count_places(size, window, stride, border, overhang, count_border: bool) -> np.ndarray:
    low, high = border
    counted = np.pad(np.ones(size, int), border, constant_values=int(count_border))
    counted = np.pad(counted, (0, overhang))
    starts = np.arange(0, low + size + high + overhang - window + 1, stride)
    return np.array([counted[start : start + window].sum() for start in starts])


def _bin_masks(first: Array, last: Array, bins: int, size: int) -> Array:
    """Marks the places of an axis that belong to each bin of first..last: bool [bins, size]."""
    length = jnp.maximum(last - first + 1, 1)
    index = jnp.arange(bins)
    starts = first + index * length // bins
    ends = first - (-(index + 1) * length // bins)  # rounded up
    place = jnp.arange(size)[None]
    return (starts[:, None] <= place) & (place < ends[:, None])


@jax.custom_jvp
def _max_where(x: Array, mask: Array) -> Array:
    """Maximum over places l where mask[b, l]: [A, L, C], bool [B, L] -> [B, A, C]; -inf if none."""
    return jnp.where(mask[:, None, :, None], x[None], -jnp.inf).max(2)


@_max_where.defjvp
def _max_where_jvp(primals, tangents):
    x, mask = primals
    dx, _ = tangents
    y = _max_where(x, mask)
    holds_maximum = mask[:, None, :, None] & (x[None] == y[:, :, None])
    place = lax.broadcasted_iota(jnp.int32, holds_maximum.shape, 2)
    first = jnp.where(holds_maximum, place, x.shape[1]).min(2, keepdims=True)
    return y, jnp.where(place == first, dx[None], 0).sum(2)
