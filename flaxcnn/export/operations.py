"""JAX's primitives as the operations that `network.js` computes, one function each.

conv      correlation with padding, stride, dilation and groups, bias and limits
matmul    rows times a constant matrix, bias and limits
maxpool   maximum over windows
reduce    sum, maximum, minimum or argmax of each row
unary, binary, select   element by element, with NumPy's broadcasting
view      a copy with other strides: slices, transposition, repetition, reversal
place     values put into a larger array of one value: padding, concatenation
reshape
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


class Unsupported(Exception):
    """Why an operation has no counterpart."""


@dataclasses.dataclass(frozen=True)
class Value:
    """What depends on the image: its number and shape."""

    ref: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: `inputs` by their numbers (see `Graph`), and their shapes."""

    op: str
    inputs: list[int]
    shapes: list[tuple[int, ...]]
    shape: tuple[int, ...]
    attributes: dict[str, Any]


class Nodes:
    """The nodes and constants made so far."""

    def __init__(self, input_shape: tuple[int, ...]):
        self.image = Value(0, input_shape)
        self.made: list[Node] = []
        self.constants: list[np.ndarray] = []
        self._known: dict[int, tuple[Any, int]] = {}

    def add(self, op: str, inputs: Sequence[Any], shape: Sequence[int], **attributes: Any) -> Value:
        """Appends a node; an input is a Value or a constant array."""
        inputs = [x if isinstance(x, Value) else _collapse(np.asarray(x)) for x in inputs]
        refs = [x.ref if isinstance(x, Value) else self._add_constant(x) for x in inputs]
        self.made.append(Node(op, refs, [x.shape for x in inputs], tuple(shape), attributes))
        return Value(len(self.made), tuple(shape))

    def _add_constant(self, x: np.ndarray) -> int:
        if id(x) not in self._known:
            self.constants.append(np.asarray(x, np.float32))
            self._known[id(x)] = x, -len(self.constants)
        return self._known[id(x)][1]

    def view(
        self, x: Value, shape: Sequence[int], strides: Sequence[int], offset: int = 0
    ) -> Value:
        """A copy of shape `shape` that reads x, row by row, with these strides."""
        return self.add("view", [x], shape, strides=list(strides), offset=offset)


def _collapse(x: np.ndarray) -> np.ndarray:
    """Axes along which an array only repeats itself get size 1."""
    index = tuple(
        slice(0, 1) if step == 0 and size else slice(None)
        for step, size in zip(x.strides, x.shape, strict=True)
    )
    return x if all(part == slice(None) for part in index) else x[index]


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _shape(equation: Any) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape


# Element by element

_UNARY = (
    *("exp", "log", "log1p", "expm1", "tanh", "logistic", "sqrt", "rsqrt", "neg", "abs", "sign"),
    *("floor", "ceil", "not", "is_finite", "square", "erf", "erfc"),
)
_BINARY = {
    name: name
    for name in ("add", "sub", "mul", "div", "max", "min", "pow", "eq", "ne", "lt", "le", "gt")
} | {"ge": "ge", "and": "and", "or": "or", "add_any": "add"}
IDENTITIES = (
    *("copy", "copy_p", "stop_gradient", "optimization_barrier", "keep_apart", "gradient_once"),
    *("once", "pvary"),
)


def _unary(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    return [nodes.add("unary", [x], x.shape, name=equation.primitive.name)]


def _binary(nodes: Nodes, equation: Any, x: Any, y: Any) -> list[Any]:
    name = _BINARY[equation.primitive.name]
    return [nodes.add("binary", [x, y], _shape(equation), name=name)]


def _integer_pow(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    exponent = np.float32(equation.params["y"])
    return [nodes.add("binary", [x, exponent], x.shape, name="pow")]


def _clamp(nodes: Nodes, equation: Any, low: Any, x: Any, high: Any) -> list[Any]:
    x = nodes.add("binary", [x, low], _shape(equation), name="max")
    return [nodes.add("binary", [x, high], _shape(equation), name="min")]


def _select(nodes: Nodes, equation: Any, which: Any, *cases: Any) -> list[Any]:
    if len(cases) != 2:
        raise Unsupported(f"it selects among {len(cases)} cases, and 2 are supported")
    return [nodes.add("select", [which, *cases], _shape(equation))]


def _convert_type(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    if jnp.issubdtype(before, jnp.floating) and not jnp.issubdtype(after, jnp.floating):
        raise Unsupported("floats become integers")
    return [x]  # booleans and integers are floats in the page


def _identity(nodes: Nodes, equation: Any, *inputs: Any) -> list[Any]:
    return list(inputs)


# Shapes


def _reshape(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    if equation.primitive.name == "reshape" and equation.params["dimensions"] is not None:
        raise Unsupported("it permutes axes as well")
    return [nodes.add("reshape", [x], _shape(equation))]


def _broadcast(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    shape, strides = _shape(equation), [0] * len(_shape(equation))
    sizes = zip(equation.params["broadcast_dimensions"], x.shape, _strides(x.shape), strict=True)
    for axis, size, step in sizes:
        strides[axis] = step if size == shape[axis] else 0
    if math.prod(shape) == math.prod(x.shape):
        return [nodes.add("reshape", [x], shape)]
    return [nodes.view(x, shape, strides)]


def _transpose(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    return [_permute(nodes, x, equation.params["permutation"])]


def _permute(nodes: Nodes, x: Value, order: Sequence[int]) -> Value:
    shape, strides = [x.shape[axis] for axis in order], _strides(x.shape)
    moving = [axis for axis in order if x.shape[axis] > 1]
    if moving == sorted(moving):
        return x if list(order) == sorted(order) else nodes.add("reshape", [x], shape)
    return nodes.view(x, shape, [strides[axis] for axis in order])


def _slice(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    known = equation.params
    return [_cut(nodes, x, known["start_indices"], known["limit_indices"], known["strides"])]


def _cut(
    nodes: Nodes, x: Value, start: Sequence[int], limit: Sequence[int], steps: Any = None
) -> Value:
    steps, strides = steps or [1] * len(x.shape), _strides(x.shape)
    shape = [-(-(b - a) // s) for a, b, s in zip(start, limit, steps, strict=True)]
    if tuple(shape) == x.shape:
        return x
    offset = sum(a * step for a, step in zip(start, strides, strict=True))
    return nodes.view(x, shape, [a * b for a, b in zip(strides, steps, strict=True)], offset)


def _reverse(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    strides, offset = _strides(x.shape), 0
    for axis in equation.params["dimensions"]:
        offset += (x.shape[axis] - 1) * strides[axis]
        strides[axis] *= -1
    return [nodes.view(x, x.shape, strides, offset)]


def _split(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    axis, first, parts = equation.params["axis"], 0, []
    for size in equation.params["sizes"]:
        start, limit = [0] * len(x.shape), list(x.shape)
        start[axis], limit[axis] = first, first + size
        parts.append(_cut(nodes, x, start, limit))
        first += size
    return parts


def _pad(nodes: Nodes, equation: Any, x: Value, value: Any) -> list[Any]:
    if isinstance(value, Value):
        raise Unsupported("what it pads with depends on the image")
    config, shape = equation.params["padding_config"], _shape(equation)
    for low, high, between in config:
        if between and min(low, high) < 0:
            raise Unsupported("it spreads and crops at once")
    start = [max(-low, 0) for low, _, _ in config]
    limit = [size - max(-high, 0) for size, (_, high, _) in zip(x.shape, config, strict=True)]
    x = _cut(nodes, x, start, limit)
    strides = _strides(shape)
    place = {
        "strides": [s * (between + 1) for s, (_, _, between) in zip(strides, config, strict=True)],
        "offset": sum(s * max(low, 0) for s, (low, _, _) in zip(strides, config, strict=True)),
    }
    return [nodes.add("place", [x], shape, places=[place], value=float(value))]


def _concatenate(nodes: Nodes, equation: Any, *parts: Any) -> list[Any]:
    axis, shape = equation.params["dimension"], _shape(equation)
    strides, first, places = _strides(shape), 0, []
    for part in parts:
        places.append({"strides": strides, "offset": first * strides[axis]})
        first += part.shape[axis]
    whole = [x if isinstance(x, Value) else np.ascontiguousarray(x) for x in parts]
    return [nodes.add("place", whole, shape, places=places, value=0.0)]


# Sums and products


def _reduce(kind: str) -> Callable[..., list[Any]]:
    def reduce(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
        axes = [axis % len(x.shape) for axis in equation.params["axes"]]
        kept = [axis for axis in range(len(x.shape)) if axis not in axes]
        rows = _permute(nodes, x, [*kept, *axes])
        length = math.prod(x.shape[axis] for axis in axes)
        return [nodes.add("reduce", [rows], _shape(equation), kind=kind, length=length)]

    return reduce


def _dot(nodes: Nodes, equation: Any, x: Any, kernel: Any) -> list[Any]:
    (left, right), batch = equation.params["dimension_numbers"]
    if any(batch) or isinstance(kernel, Value) or not isinstance(x, Value):
        raise Unsupported("its second operand is no constant matrix")
    rows = _permute(nodes, x, [*(a for a in range(len(x.shape)) if a not in left), *left])
    free = [axis for axis in range(kernel.ndim) if axis not in right]
    length = math.prod(x.shape[axis] for axis in left)
    if [*right, *free] != list(range(kernel.ndim)) or kernel.ndim != 2:
        kernel = np.transpose(kernel, [*right, *free]).reshape(length, -1)
    kernel, shape = np.ascontiguousarray(kernel), _shape(equation)
    count = math.prod(shape) // kernel.shape[1]
    return [nodes.add("matmul", [rows, kernel], shape, length=length, rows=count)]


def _convolve(nodes: Nodes, equation: Any, x: Any, kernel: Any) -> list[Any]:
    spec = equation.params["spec"]
    return [
        _add_conv(
            nodes,
            equation,
            (x, kernel),
            (spec.strides, spec.pads, spec.dilation),
            spec.groups,
        )
    ]


def _lax_conv(nodes: Nodes, equation: Any, x: Any, kernel: Any) -> list[Any]:
    known, rank = equation.params, len(_shape(equation)) - 2
    numbers, axes = known["dimension_numbers"], tuple(range(1, rank + 1))
    channels_last = (0, rank + 1, *axes)
    kernel_last = (rank + 1, rank, *range(rank))
    if (
        tuple(numbers.lhs_spec) != channels_last
        or tuple(numbers.out_spec) != channels_last
        or tuple(numbers.rhs_spec) != kernel_last
    ):
        raise Unsupported("images are [N, H, W, C] and kernels [H, W, C, F] there")
    if max(known["lhs_dilation"]) > 1 or known["batch_group_count"] > 1:
        raise Unsupported("it is a transposed convolution or a gradient")
    sizes = known["window_strides"], known["padding"], known["rhs_dilation"]
    return [_add_conv(nodes, equation, (x, kernel), sizes, known["feature_group_count"])]


def _add_conv(
    nodes: Nodes, equation: Any, operands: tuple[Any, Any], sizes: Any, groups: int
) -> Value:
    (x, kernel), shape = operands, _shape(equation)
    if isinstance(kernel, Value) or not isinstance(x, Value):
        raise Unsupported("its kernel depends on the image")
    strides, pads, dilation = ([*values] for values in sizes)
    if len(strides) > 2:
        raise Unsupported(f"it has {len(strides)} dimensions, and up to 2 are supported")
    missing = 2 - len(strides)  # of a signal, an image of one row
    return nodes.add(
        "conv",
        [x, np.ascontiguousarray(kernel)],
        shape,
        input=[*[1] * missing, *x.shape[1:]],
        kernel=[*[1] * missing, *kernel.shape[:-2]],
        output=[*[1] * missing, *shape[1:]],
        strides=[*[1] * missing, *strides],
        before=[*[0] * missing, *(low for low, _ in pads)],
        dilation=[*[1] * missing, *dilation],
        groups=groups,
    )


def _max_pool(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    windows = equation.params["windows"]
    rank = len(windows.shape)
    if rank > 2:
        raise Unsupported(f"it has {rank} dimensions, and up to 2 are supported")
    return [
        _add_pool(
            nodes, equation, x, rank, (windows.shape, windows.strides, [p[0] for p in windows.pads])
        )
    ]


def _lax_max_pool(nodes: Nodes, equation: Any, x: Value) -> list[Any]:
    known, rank = equation.params, len(x.shape) - 2
    size, strides, pads = (known[key] for key in ("window_dimensions", "window_strides", "padding"))
    if rank not in (1, 2) or (size[0], size[-1], strides[0], strides[-1]) != (1, 1, 1, 1):
        raise Unsupported("its windows are not over the axes of an image")
    if max(*known["base_dilation"], *known["window_dilation"]) > 1 or any(pads[0] + pads[-1]):
        raise Unsupported("it is dilated, or pads channels")
    low = [pair[0] for pair in pads[1:-1]]
    return [_add_pool(nodes, equation, x, rank, (size[1:-1], strides[1:-1], low))]


def _add_pool(nodes: Nodes, equation: Any, x: Value, rank: int, sizes: Any) -> Value:
    shape, missing = _shape(equation), 2 - rank
    window, strides, before = ([*values] for values in sizes)
    return nodes.add(
        "maxpool",
        [x],
        shape,
        batch=math.prod(x.shape[: -1 - rank]),
        input=[*[1] * missing, *x.shape[-1 - rank :]],
        window=[*[1] * missing, *window],
        output=[*[1] * missing, *shape[-1 - rank :]],
        strides=[*[1] * missing, *strides],
        before=[*[0] * missing, *before],
    )


PRIMITIVES: dict[str, Callable[..., list[Any]]] = (
    dict.fromkeys(_UNARY, _unary)
    | dict.fromkeys(_BINARY, _binary)
    | dict.fromkeys(IDENTITIES, _identity)
    | dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape)
    | {
        "integer_pow": _integer_pow,
        "clamp": _clamp,
        "select_n": _select,
        "convert_element_type": _convert_type,
        "broadcast_in_dim": _broadcast,
        "transpose": _transpose,
        "slice": _slice,
        "rev": _reverse,
        "split": _split,
        "pad": _pad,
        "concatenate": _concatenate,
        "reduce_sum": _reduce("sum"),
        "reduce_max": _reduce("max"),
        "reduce_min": _reduce("min"),
        "argmax": _reduce("argmax"),
        "dot_general": _dot,
        "convolve": _convolve,
        "conv_general_dilated": _lax_conv,
        "max_of_windows": _max_pool,
        "reduce_window_max": _lax_max_pool,
    }
)
