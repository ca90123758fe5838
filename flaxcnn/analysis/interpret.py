"""A program gone through equation by equation, with something else than arrays as values."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


def interpret(
    jaxpr: Any,
    inputs: Sequence[Value],
    apply: Callable[[Any, list[Value]], Sequence[Value]],
    constant: Value,
) -> list[Value]:
    """The values of a jaxpr's outputs, from those of its inputs.

    `apply(equation, values)` gives the values of an equation's outputs. What is only called (by
    `jit`, `custom_jvp`, `remat`) is entered; loops and branches are equations. Literals and
    constants have the value `constant`.
    """
    known = dict.fromkeys(jaxpr.constvars, constant) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:  # a literal is not hashable in every jax
        return constant if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        called = find_called(equation)
        outputs = (
            apply(equation, values)
            if called is None
            else interpret(called, values, apply, constant)
        )
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def find_called(equation: Any) -> Any:
    """The jaxpr that an equation calls once, with its own arguments, or None."""
    if equation.primitive.name == "scan":
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = open_jaxpr(equation.params.get(name))
        if len(getattr(found, "invars", ())) == len(equation.invars) > 0:
            return found
    return None


def open_jaxpr(jaxpr: Any) -> Any:
    """A jaxpr without its constants, which a closed one carries."""
    return getattr(jaxpr, "jaxpr", jaxpr)
