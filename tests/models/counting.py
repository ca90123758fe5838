"""Counts parameters, and what a program holds, rather than from a network's own figures."""

import jax

from flaxcnn.analysis.multiply_adds import count_multiply_adds as count_multiply_adds
from flaxcnn.analysis.multiply_adds import multiply_adds as multiply_adds


def count_values(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for param in equation.params.values():
            inner = getattr(param, "jaxpr", None)
            if inner is not None and equation.primitive.name != "custom_jvp_call":
                yield from equations(inner)
