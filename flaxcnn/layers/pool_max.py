"""The maximum over windows and its derivative as JAX primitives, with a lowering per platform.

    max_of_windows(images) -> outputs
    select_maxima(images, outputs, tangent of images) -> tangent of outputs
    spread_to_maxima(images, outputs, gradient of outputs) -> gradient of images

The second and third are linear in their last operand and each other's transpose, hence derivatives
of every order stay within the three. On a TPU the first and third are XLA's own window operations,
which move the fewest bytes there; elsewhere all are made of taps, which are fast on CPU and compile
on GPU under `--xla_gpu_deterministic_ops` (docs/adr/0014).

The derivative passes through the first tap that holds the maximum, and through none where the
maximum is minus infinity or not a number: there the two ways would differ.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxcnn.layers.conv_maps import in_auto_axes
from flaxcnn.layers.plain import is_plain
from flaxcnn.layers.pool_windows import (
    Windows,
    has_window,
    least_value,
    reduce_windows,
    taps,
    taps_of_tangent,
)

Array = jax.Array


def max_of_windows(x: Array, windows: Windows) -> Array:
    """Maxima [..., *size', C] of images [..., *size, C]; the border is the least value there is."""
    if is_plain():
        return max_by_window(x, windows)
    return max_of_windows_p.bind(x, windows=windows)


# By taps


def max_by_taps(x: Array, windows: Windows) -> Array:
    """`max_of_windows` in elementwise operations."""
    return functools.reduce(jnp.maximum, taps(x, windows, least_value(x.dtype)))


def select_by_taps(x: Array, y: Array, dx: Array, windows: Windows) -> Array:
    """`select_maxima` in elementwise operations."""
    return _select(_find_first(x, y, windows), dx, windows)


def spread_by_taps(x: Array, y: Array, dy: Array, windows: Windows) -> Array:
    """`spread_to_maxima` in elementwise operations."""
    first = _find_first(x, y, windows)
    # Images and not only their shape: inside `shard_map` the type says along which axes they vary.
    like = _spread_batch(x, dy, windows)
    return jax.linear_transpose(lambda dx: _select(first, dx, windows), like)(dy)[0]


def _find_first(x: Array, y: Array, windows: Windows) -> Array:
    """Which tap of a window the derivative passes through, found once for all (docs/adr/0012)."""
    least = least_value(x.dtype)
    xs = taps(x, windows, least)
    counter = jnp.int8 if len(xs) < 128 else jnp.int32
    first = jnp.full(y.shape, len(xs) - 1, counter)
    for index, tap in reversed(list(enumerate(xs[:-1]))):
        first = jnp.where(tap == y, jnp.asarray(index, counter), first)
    return jnp.where(y > least, first, jnp.asarray(len(xs), counter))


def _select(first: Array, dx: Array, windows: Windows) -> Array:
    terms = [
        jnp.where(first == index, tap, 0) for index, tap in enumerate(taps_of_tangent(dx, windows))
    ]
    return functools.reduce(jnp.add, terms)


# By XLA's window operations


def max_by_window(x: Array, windows: Windows) -> Array:
    """`max_of_windows` as `flax.linen.max_pool` has it."""
    if not has_window(x, windows):
        return max_by_taps(x, windows)
    return reduce_windows(x, windows, least_value(x.dtype), lax.max)


def spread_by_window(x: Array, y: Array, dy: Array, windows: Windows) -> Array:
    """`spread_to_maxima` as select-and-scatter."""
    if not has_window(x, windows):
        return spread_by_taps(x, y, dy, windows)
    dy = jnp.where(y > least_value(x.dtype), dy, 0)
    x = _spread_batch(x, dy, windows)
    (dx,) = jax.vjp(lambda x: max_by_window(x, windows), x)[1](dy)
    return dx


def _spread_batch(x: Array, dy: Array, windows: Windows) -> Array:
    """Images for each example of the gradient, where all have the same (`_map`)."""
    return jnp.broadcast_to(x, (*_batch(dy, windows), *x.shape[-1 - len(windows.shape) :]))


def _batch(x: Array, windows: Windows) -> tuple[int, ...]:
    return x.shape[: -1 - len(windows.shape)]


# As primitives. Images and outputs may have the size 1 on an axis of the batch, for all examples of
# the tangent or gradient: so `vmap` leaves what is not mapped.


def _make_primitive(name: str, infer: Callable, by_taps: Callable, on_tpu: Callable) -> Primitive:
    primitive = Primitive(name)

    @primitive.def_impl
    def run(*operands, windows):
        return jax.jit(functools.partial(primitive.bind, windows=windows))(*operands)

    @primitive.def_abstract_eval
    def infer_type(*avals, windows):
        size = infer(avals[0], windows)
        return avals[-1].update(shape=(*_batch(avals[-1], windows), *size, avals[-1].shape[-1]))

    def lower(function):
        def run(*operands, windows):
            spec = jax.typeof(operands[-1]).sharding.spec
            return in_auto_axes(functools.partial(function, windows=windows), spec)(*operands)

        return mlir.lower_fun(run, multiple_results=False)

    mlir.register_lowering(primitive, lower(by_taps))
    mlir.register_lowering(primitive, lower(on_tpu), platform="tpu")
    batching.primitive_batchers[primitive] = functools.partial(_map, primitive)
    return primitive


def _map(primitive: Primitive, operands: Any, axes: Any, windows: Windows) -> tuple[Array, int]:
    """The rule of `vmap`: one more axis of the batch."""
    operands = [
        x[None] if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    count = max(x.shape[0] for x in operands)
    operands[-1] = jnp.broadcast_to(operands[-1], (count, *operands[-1].shape[1:]))
    return primitive.bind(*operands, windows=windows), 0


max_of_windows_p = _make_primitive(
    "max_of_windows", lambda x, windows: windows.output_size(x), max_by_taps, max_by_window
)
select_maxima_p = _make_primitive(
    "select_maxima", lambda x, windows: windows.output_size(x), select_by_taps, select_by_taps
)
spread_to_maxima_p = _make_primitive(
    "spread_to_maxima",
    lambda x, windows: x.shape[-1 - len(windows.shape) : -1],
    spread_by_taps,
    spread_by_window,
)


def _jet_max(operands: Any, series: Any, windows: Windows) -> Any:
    (x,), (terms,) = operands, series
    y = max_of_windows_p.bind(x, windows=windows)
    return y, [select_maxima_p.bind(x, y, term, windows=windows) for term in terms]


def _make_linear(primitive: Primitive, transposed: Primitive) -> None:
    """Derivatives of a map that is linear in its last operand and constant in the others."""

    def derive(dz, x, y, z, windows):
        return primitive.bind(x, y, dz, windows=windows)

    def transpose(cotangent, x, y, z, windows):
        if type(cotangent) is ad.Zero:
            return None, None, ad.Zero(z.aval)
        return None, None, transposed.bind(x, y, cotangent, windows=windows)

    def expand(operands, series, windows):
        x, y, z = operands
        bind = functools.partial(primitive.bind, x, y, windows=windows)
        return bind(z), [bind(term) for term in series[2]]

    ad.defjvp(primitive, None, None, derive)
    ad.primitive_transposes[primitive] = transpose
    jet.jet_rules[primitive] = expand


ad.defjvp2(
    max_of_windows_p,
    lambda dx, y, x, windows: select_maxima_p.bind(x, y, dx, windows=windows),
)
jet.jet_rules[max_of_windows_p] = _jet_max
_make_linear(select_maxima_p, spread_to_maxima_p)
_make_linear(spread_to_maxima_p, select_maxima_p)
