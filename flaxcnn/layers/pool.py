"""Pooling in NHWC whose gradients compile to elementwise operations.

XLA's gradient of a window maximum is select-and-scatter: slow on CPU, and refused on GPU under
`--xla_gpu_deterministic_ops` (flax#4233). Here a window is a list of taps, one array per position
within the window, and the derivative passes through the first tap that holds the maximum, as
select-and-scatter and PyTorch have it.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = str | Sequence[tuple[int, int]]


def max_pool(
    x: Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """Maximum over windows of images [N, H, W, C]; arguments as in `flax.linen.max_pool`.

    Strides are 1 unless given, the border counts as minus infinity, and the derivative goes to
    the first maximum of a window in row-major order.
    """
    strides = strides or (1, 1)
    x = _pad(x, window_shape, strides, padding, -jnp.inf)
    return _max_of_windows(x, window_shape, strides)


def avg_pool(
    x: Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Mean over windows of images [N, H, W, C]; arguments as in `flax.linen.avg_pool`.

    Strides are 1 unless given. The border counts as zeros, or not at all if `count_include_pad`
    is false.
    """
    strides = strides or (1, 1)

    def sum_windows(x: Array) -> Array:
        x = _pad(x, window_shape, strides, padding, 0)
        return functools.reduce(jnp.add, _taps(x, window_shape, strides))

    if count_include_pad:
        return sum_windows(x) / (window_shape[0] * window_shape[1])
    return sum_windows(x) / sum_windows(jnp.ones_like(x[:1, :, :, :1]))


def global_avg_pool(x: Array) -> Array:
    """Mean over each map: [N, H, W, C] -> [N, C]."""
    return x.mean((1, 2))


def global_max_pool(x: Array) -> Array:
    """Maximum of each map: [N, H, W, C] -> [N, C]; the derivative goes to the first maximum."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = x.argmax(1, keepdims=True)
    position = lax.broadcasted_iota(first.dtype, x.shape, 1)
    return jnp.where(position == first, x, 0).sum(1)


def _pad(x: Array, window_shape, strides, padding: Padding, value: float) -> Array:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window_shape, strides, padding)
    if all(pair == (0, 0) for pair in padding):
        return x
    return jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max_of_windows(x: Array, window_shape, strides) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, window_shape, strides))


@_max_of_windows.defjvp
def _max_of_windows_jvp(window_shape, strides, primals, tangents):
    (x,), (dx,) = primals, tangents
    y = _max_of_windows(x, window_shape, strides)
    *earlier, (_, dy) = zip(
        _taps(x, window_shape, strides), _taps(dx, window_shape, strides), strict=True
    )
    for tap, dtap in reversed(earlier):  # so the first maximum has the last word
        dy = jnp.where(tap == y, dtap, dy)
    return y, dy
