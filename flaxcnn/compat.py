"""All that differs between the versions of jax and flax that flaxcnn works with.

The oldest are Colab's, jax 0.7.2 and flax 0.11.2. What another version calls otherwise is looked
up here, and nowhere else.
"""

from typing import Any

import jax
from jax import lax

Array = jax.Array


def vary_alike(*arrays: Array) -> list[Array]:
    """Inside `shard_map`, marks each array as varying over every axis that one of them varies over.

    JAX does this for its own primitives; its transpose is the `psum` of a replicated array's
    gradient.
    """
    axes = [_varying_axes(jax.typeof(array)) for array in arrays]
    union = frozenset().union(*axes)
    return [
        _vary(array, tuple(sorted(union - own))) for array, own in zip(arrays, axes, strict=True)
    ]


def like_operand(out: Any, operand: Any) -> Any:
    """The abstract value `out`, varying over the axes of `shard_map` that `operand` varies over."""
    if hasattr(operand, "manual_axis_type"):
        return out.update(manual_axis_type=operand.manual_axis_type)
    return out.update(vma=operand.vma)


def _varying_axes(aval: Any) -> frozenset[str]:
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return aval.vma


def _vary(x: Array, axes: tuple[str, ...]) -> Array:
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return lax.pvary(x, axes)  # pyright: ignore[reportAttributeAccessIssue]


def called_jaxpr(equation: Any) -> Any:
    """The ClosedJaxpr that an equation of a jaxpr calls if it is a `jax.jit`, else None."""
    return equation.params["jaxpr"] if equation.primitive.name in ("jit", "pjit") else None
