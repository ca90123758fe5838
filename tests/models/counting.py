"""Counts parameters, and multiply-adds from a program rather than from a network's own figures."""

import jax
import numpy as np


def count_values(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_multiply_adds(jaxpr) -> int:
    """Multiply-adds of the convolutions and matrix products of a jaxpr."""
    return sum(map(multiply_adds, equations(jaxpr)))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for param in equation.params.values():
            inner = getattr(param, "jaxpr", None)
            if inner is not None and equation.primitive.name != "custom_jvp_call":
                yield from equations(inner)


def multiply_adds(equation) -> int:
    out = equation.outvars[0].aval
    if equation.primitive.name == "convolve":
        return out.size * int(np.prod(equation.invars[1].aval.shape[:3]))
    # Layers multiply features [N, C]; a product with maps sums the channels of local_response_norm.
    if equation.primitive.name == "dot_general" and equation.invars[0].aval.ndim == 2:
        ((contracted, _), _) = equation.params["dimension_numbers"]
        return out.size * int(np.prod([equation.invars[0].aval.shape[i] for i in contracted]))
    return 0
