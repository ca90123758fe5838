"""Multiply-adds of a program, counted from its equations; nothing is computed."""

import math
from collections.abc import Sequence
from typing import Any

from flaxcnn.analysis.interpret import interpret, open_jaxpr


def count_multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of a jaxpr.

    Those on zeros of a border count, as in papers; products with constants (the sum of channels in
    `local_response_norm`) and the zeros between pixels in transposed convolutions do not. Of
    branches the last is counted, of a loop whose length is unknown one round.
    """
    total = 0

    def walk(jaxpr: Any, inputs: Sequence[bool], times: int) -> list[bool]:
        def apply(equation: Any, depends: list[bool]) -> list[bool]:
            nonlocal total
            if found := find_loop(equation):
                inner, skipped, rounds = found
                return walk(inner, depends[skipped:], times * rounds)
            if all(depends):
                total += times * multiply_adds(equation)
            return [any(depends)] * len(equation.outvars)

        return interpret(open_jaxpr(jaxpr), inputs, apply, False)

    walk(jaxpr, [True] * len(open_jaxpr(jaxpr).invars), 1)
    return total


def multiply_adds(equation: Any) -> int:
    """Those of one equation of a jaxpr: a convolution or a matrix product, else 0."""
    count = _COUNTS.get(equation.primitive.name)
    if count is None:
        return 0
    first, second = (variable.aval.shape for variable in equation.invars)
    return count(first, second, equation.outvars[0].aval.shape, equation.params)


def find_loop(equation: Any) -> tuple[Any, int, int] | None:
    """The body of a loop, or the last branch: its jaxpr, arguments that it lacks, and rounds."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return open_jaxpr(params["jaxpr"]), 0, params["length"]
    if name == "while":
        return open_jaxpr(params["body_jaxpr"]), params["cond_nconsts"], 1
    if name == "cond":
        return open_jaxpr(params["branches"][-1]), 1, 1
    return None


# Each from the shapes of both operands and of the result. A kernel is [*size, C/groups, F]: its
# every value but the choice of the feature is multiplied for each value that comes out.


def _of_convolution(x: tuple, kernel: tuple, y: tuple, params: dict) -> int:
    return math.prod(y) * math.prod(kernel[:-1])


def _of_input_gradient(dy: tuple, kernel: tuple, x: tuple, params: dict) -> int:
    return math.prod(dy) * math.prod(kernel[:-1])


def _of_kernel_gradient(x: tuple, dy: tuple, kernel: tuple, params: dict) -> int:
    return math.prod(dy) * math.prod(kernel[:-1])


def _of_lax_convolution(x: tuple, kernel: tuple, y: tuple, params: dict) -> int:
    numbers = params["dimension_numbers"]
    features = kernel[numbers.rhs_spec[0]]
    per_value = math.prod(kernel) // features
    if max(params["lhs_dilation"], default=1) > 1:  # transposed: each pixel meets each of the taps
        each = features // params["feature_group_count"]
        size = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
        return math.prod(x) * size * each // params["batch_group_count"]
    return math.prod(y) * per_value


def _of_product(x: tuple, w: tuple, y: tuple, params: dict) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(y) * math.prod(x[axis] for axis in contracted)


_COUNTS = {
    "convolve": _of_convolution,
    "convolve_input_gradient": _of_input_gradient,
    "convolve_kernel_gradient": _of_kernel_gradient,
    "conv_general_dilated": _of_lax_convolution,
    "dot_general": _of_product,
}
