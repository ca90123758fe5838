"""Windows over [..., *size, C] as taps: one array per position within the window."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.padding import Padding, Pads, Sizes, as_integer, per_axis, read_padding

Array = jax.Array


class Windows(NamedTuple):
    """Where the windows lie: the border the caller asked for, and what sticks out of it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    border: Pads
    overhang: tuple[int, ...]  # at the end of each axis; 0 without ceil_mode
    symbolic: bool  # whether a size is a symbol of jax.export

    @property
    def pads(self) -> Pads:
        """The border with the overhang."""
        axes = zip(self.border, self.overhang, strict=True)
        return tuple((low, high + extra) for (low, high), extra in axes)

    def output_size(self, x: Array) -> tuple[int, ...]:
        """The number of windows on each axis of [..., *size, C], before it is padded."""
        sizes = x.shape[-1 - len(self.shape) : -1]
        axes = zip(sizes, self.pads, self.shape, self.strides, strict=True)
        return tuple(
            max((size + low + high - window) // stride + 1, 0)
            for size, (low, high), window, stride in axes
        )


def place_windows(
    x: Array, window_shape: Sizes, strides: Sizes | None, padding: Padding, ceil_mode: bool
) -> Windows:
    """Reads a pool's arguments. Raises UserError for what they may not be (`pool.py`)."""
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
    return Windows(shape, strides, border, overhang, symbolic)


def _overhang(size: int, window: int, stride: int, border: tuple[int, int]) -> int:
    low, high = border
    last = -(-(size + low + high - window) // stride)
    if last * stride >= size + low:
        last -= 1
    return max(last * stride + window - (size + low + high), 0)


def least_value(dtype) -> bool | int | float:
    """What every value of `dtype` is at least: the neutral element of a maximum."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return False
    return -math.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def taps(x: Array, windows: Windows, border: float) -> list[Array]:
    """Cuts x into one [..., *size', C] array per position within the window, in row-major order."""
    sizes, x = windows.output_size(x), _pad(x, windows, border)
    batch, channels = x.shape[: -1 - len(sizes)], x.shape[-1]
    if 0 in sizes:  # no window fits
        return [lax.slice(x, (0,) * x.ndim, (*batch, *sizes, channels))]
    zeros, ones = (0,) * len(batch), (1,) * len(batch)
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, windows.strides, strict=True)]
    return [
        lax.slice(
            x,
            (*zeros, *place, 0),
            (*batch, *(i + length for i, length in zip(place, reach, strict=True)), channels),
            (*ones, *windows.strides, 1),
        )
        for place in itertools.product(*map(range, windows.shape))
    ]


def taps_of_tangent(x: Array, windows: Windows) -> list[Array]:
    """As `taps`, made to be transposed: windows side by side are split, their gradients joined.

    The gradient is several times as fast as with slices on CPU (docs/adr/0012).
    """
    sizes = windows.output_size(x)
    if windows.shape != windows.strides or 0 in sizes:
        return taps(x, windows, 0)
    x = _pad(x, windows, 0)
    first = x.ndim - 1 - len(sizes)
    ends = (size * stride for size, stride in zip(sizes, windows.strides, strict=True))
    x = lax.slice(x, (0,) * x.ndim, (*x.shape[:first], *ends, x.shape[-1]))
    within = [first + 2 * i + 1 for i in range(len(sizes))]  # the axes of places in a window
    for axis, size, stride in zip(within, sizes, windows.strides, strict=True):
        # One axis at a time: under explicit sharding a reshape may split no more.
        x = x.reshape(*x.shape[: axis - 1], size, stride, *x.shape[axis:])
    parts = [x]
    for axis, stride in zip(within, windows.strides, strict=True):
        parts = [part for whole in parts for part in lax.split(whole, (1,) * stride, axis=axis)]
    return [lax.squeeze(part, within) for part in parts]


def has_window(x: Array, windows: Windows) -> bool:
    """Whether a window fits, and no border crops the images: XLA pads only."""
    return 0 not in windows.output_size(x) and min(map(min, windows.pads)) >= 0


def reduce_windows(x: Array, windows: Windows, init: float, reduce: Callable) -> Array:
    """By XLA's own operation, which alone takes symbolic sizes whose windows may not fit."""
    batch = x.ndim - 1 - len(windows.shape)
    pads = [(0, 0)] * batch + [*windows.pads, (0, 0)]
    ones = (1,) * batch
    window, strides = (*ones, *windows.shape, 1), (*ones, *windows.strides, 1)
    return lax.reduce_window(x, np.asarray(init, x.dtype), reduce, window, strides, pads)


def _pad(x: Array, windows: Windows, value: float) -> Array:
    if all(pair == (0, 0) for pair in windows.pads):
        return x
    none = [(0, 0, 0)] * (x.ndim - 1 - len(windows.shape))
    config = [*none, *((low, high, 0) for low, high in windows.pads), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), config)
