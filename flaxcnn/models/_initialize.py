"""Variables for a module, from programs that compile in a fraction of `jit(model.init)`'s time.

XLA compiles Threefry anew for every shape that random numbers are drawn in, and in a deep network
nothing takes longer. But with `jax_threefry_partitionable`, the default, a draw depends only on its
key and on its index in the flat array. So `init` is traced, the forward pass is left out, and what
is left is computed in three steps: the keys of all draws; by one program all random bits, in one
array; and by another what the initialisers make of them.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.random import threefry_2x32

from flaxcnn.compat import called_jaxpr
from flaxcnn.errors import UserError

Array = jax.Array

_ROW = 2**14  # bits are drawn in rows, of which the last of a parameter is cut
_ROWS_AT_ONCE = 64


def init(model: nn.Module, key: Any, shape: Sequence[int]) -> Any:
    """Initialises any Linen module for images of `shape`, (height, width, channels).

    Returns what `jax.jit(model.init)` does, bit for bit, on float32 zeros [1, H, W, C] and with
    train=False if the module has that argument. `key` is a key, or a dict with one for each stream
    of random numbers, such as "params". docs/adr/0010 has times. Raises UserError
    if the module cannot take such images.
    """
    has_train = "train" in inspect.signature(model.__call__).parameters
    arguments: dict[str, Any] = {"train": False} if has_train else {}

    def initialize(key: Any) -> Any:
        return model.init(key, jnp.zeros((1, *shape), jnp.float32), **arguments)

    try:
        traced, shapes = jax.make_jaxpr(initialize, return_shape=True)(key)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        sides = "x".join(map(str, shape))
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the network cannot take {sides} images: {reason}") from error
    keys = jax.tree.leaves(key)
    if traced.effects or any(isinstance(leaf, Tracer) for leaf in keys):
        return jax.jit(initialize)(key)  # prints in the network, or a caller that is itself traced
    program = jax.make_jaxpr(lambda *keys: _inline(traced, keys))(*keys)
    return jax.tree.unflatten(jax.tree.structure(shapes), _compute(program, keys))


def _compute(program: ClosedJaxpr, keys: Sequence[Array]) -> list[Array]:
    """The outputs of a program without calls, for which random bits are drawn all at once."""
    jaxpr = program.jaxpr
    inputs, values = [*jaxpr.constvars, *jaxpr.invars], [*program.consts, *keys]
    draws = [e for e in _needed(jaxpr.eqns, jaxpr.outvars) if _draws_by_index(e)]
    drawn = [e.outvars[0] for e in draws]
    rest = [e for e in jaxpr.eqns if set(drawn).isdisjoint(e.outvars)]
    finish = _make_function(jaxpr, rest, [*inputs, *drawn], jaxpr.outvars)
    if not draws:
        return jax.jit(finish)(*values)
    draw_keys = _make_function(jaxpr, jaxpr.eqns, inputs, [e.invars[0] for e in draws])(*values)
    shapes = [e.params["shape"] for e in draws]
    rows = [-(-math.prod(shape) // _ROW) for shape in shapes]
    words = np.repeat([jax.random.key_data(key) for key in draw_keys], rows, axis=0)
    starts = np.concatenate([np.arange(n) * _ROW for n in rows]).astype(np.uint32)

    @jax.jit
    def run(bits: Array, *values: Any) -> list[Array]:
        ends = np.cumsum(rows)
        parts = [
            bits[end - n : end].reshape(-1)[: math.prod(shape)].reshape(shape)
            for end, n, shape in zip(ends, rows, shapes, strict=True)
        ]
        return finish(*values, *parts)

    return run(_draw_rows(words, starts), *values)


@jax.jit
def _draw_rows(words: Array, starts: Array) -> Array:
    """The bits [rows, _ROW] that keys of two words, uint32 [rows, 2], give from `starts` [rows]."""

    def draw(row: tuple[Array, Array]) -> Array:
        key, start = row
        index = start + jnp.arange(_ROW, dtype=jnp.uint32)
        high, low = threefry_2x32(key, jnp.stack([jnp.zeros_like(index), index]))
        return high ^ low

    return lax.map(draw, (words, starts), batch_size=_ROWS_AT_ONCE)


def _draws_by_index(equation: JaxprEqn) -> bool:
    """Whether an equation draws 32 bits for each index, with one Threefry key."""
    if equation.primitive.name != "random_bits" or equation.params["bit_width"] != 32:
        return False
    key: Any = equation.invars[0].aval
    threefry = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return (
        jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
        and (key.shape, key.dtype) == (threefry.shape, threefry.dtype)
        and 0 < math.prod(equation.params["shape"]) < 2**32
    )


def _inline(program: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    """Evaluates a program, with the equations of what it calls instead of the calls."""
    jaxpr = program.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *values], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in _needed(jaxpr.eqns, jaxpr.outvars):
        called = called_jaxpr(equation)
        if called is not None:
            results = _inline(called, [read(atom) for atom in equation.invars])
        else:
            inputs = list(dict.fromkeys(_variables(equation.invars)))
            apply = _make_function(jaxpr, [equation], inputs, equation.outvars)
            results = apply(*map(read, inputs))
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _make_function(
    jaxpr: Jaxpr, equations: Sequence[JaxprEqn], inputs: Sequence[Var], outputs: Sequence[Any]
) -> Callable[..., list[Any]]:
    """The function from the values of `inputs` to those of `outputs`, by equations of `jaxpr`."""
    part = {"invars": inputs, "outvars": outputs, "eqns": _needed(equations, outputs)}
    return jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=(), **part), ()))


def _needed(equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> list[JaxprEqn]:
    """Those of the equations that the outputs depend on, in their order."""
    wanted, needed = set(_variables(outputs)), []
    for equation in reversed(equations):
        if not wanted.isdisjoint(equation.outvars):
            needed.append(equation)
            wanted.update(_variables(equation.invars))
    return needed[::-1]


def _variables(atoms: Sequence[Any]) -> list[Var]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]
