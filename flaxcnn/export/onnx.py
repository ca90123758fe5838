"""A network as ONNX, by jax2onnx.

The converter knows the operations of `lax`, and pools as Flax's. So the network is traced in plain
`lax` (`flaxcnn.layers.plain`), with a symbol for the number of images, and its equations are given
to the converter one by one: window reductions as Flax's pools, and what is broadcast as it is,
because operations of ONNX broadcast by themselves.
"""

import contextlib
import functools
import importlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.core import Tracer

from flaxcnn.errors import UserError
from flaxcnn.export.graph import CALLS
from flaxcnn.layers.plain import in_plain_lax

OPSET = 21


def export_onnx(
    path: str | Path,
    function: Callable[[jax.Array], Any],
    image_shape: Sequence[int],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes `function`, images uint8 [N, *image_shape] -> arrays [N, ...], of any N.

    `Predictor.function` is one; it has to compute in float32. The file's input is "images", and
    its output "probabilities", or the names of a dict of arrays. `metadata` becomes the file's own,
    each value as JSON.

    Raises UserError if jax2onnx is not installed, or names the operation that it cannot convert.
    """
    try:
        converter = importlib.import_module("jax2onnx")
    except ImportError:
        raise UserError(f"{path}: ONNX needs jax2onnx: pip install 'flaxcnn[onnx]'") from None
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *image_shape), jnp.uint8)
    with in_plain_lax():
        program, answer = jax.make_jaxpr(lambda x: function(x), return_shape=True)(images)
    try:
        with _quiet():
            model = converter.to_onnx(
                lambda x: tuple(evaluate(program.jaxpr, program.consts, [x])),
                [images],
                model_name=Path(path).stem,
                opset=OPSET,
                input_names=["images"],
                output_names=_name_outputs(answer),
            )
    except Exception as error:  # of many kinds
        reason = (str(error).strip() or repr(error)).split("\n")[0]
        raise UserError(f"{path}: jax2onnx cannot convert the network: {reason}") from error
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    Path(path).write_bytes(model.SerializeToString())


def _name_outputs(answer: Any) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(answer)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return [name or "probabilities" for name in names]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """jax2onnx prints what its authors debugged last, and onnx_ir warns of what is then added."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class Spread(NamedTuple):
    """An array that is not broadcast yet: `value` has the rank of `shape`, and sizes of 1."""

    value: Any
    shape: tuple[Any, ...]


_BROADCASTING = (
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
_FOLLOWING = ("convert_element_type", "neg", "exp", "log", "sqrt", "rsqrt", "logistic", "tanh")


def evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr, whose calls are entered; what depends on constants alone is one."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= dict(zip(jaxpr.constvars, consts, strict=True))

    def look_up(var: Any) -> Any:
        return var.val if hasattr(var, "val") else known[var]

    for equation in jaxpr.eqns:
        inputs = [look_up(var) for var in equation.invars]
        if equation.primitive.name in CALLS:
            body = equation.params[CALLS[equation.primitive.name]]
            inner, inner_consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
            results = evaluate(inner, inner_consts, inputs)
        else:
            results = _bind(equation, inputs)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [_whole(look_up(var)) for var in jaxpr.outvars]


def _bind(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name == "broadcast_in_dim" and len(inputs) == 1:
        return [_spread(inputs[0], shape, params["broadcast_dimensions"])]
    bind = functools.partial(equation.primitive.bind, **params)
    late = [x for x in inputs if isinstance(x, Spread)]
    if late and name in _BROADCASTING + _FOLLOWING:
        values = [x.value if isinstance(x, Spread) else x for x in inputs]
        value = _compute(equation, bind, values)[0]
        return [Spread(value, shape) if len(late) == len(inputs) else value]
    inputs = [_whole(x) for x in inputs]
    if name in _REPLACED and any(isinstance(x, Tracer) for x in inputs):
        result = _REPLACED[name](*inputs, **params)
        return list(result) if equation.primitive.multiple_results else [result]
    return _compute(equation, bind, inputs)


def _compute(equation: Any, bind: Callable[..., Any], inputs: list[Any]) -> list[Any]:
    """Constants are computed now, unless they would grow; the rest is traced."""
    outputs = [var.aval for var in equation.outvars]
    size = sum(math.prod(x.shape) for x in outputs if _is_static(x.shape))
    now = (
        not any(isinstance(x, Tracer) for x in inputs)
        and all(_is_static(x.shape) for x in outputs)
        and size <= max(64, sum(np.size(x) for x in inputs))
    )
    with jax.ensure_compile_time_eval() if now else contextlib.nullcontext():
        results = bind(*inputs)
    return list(results) if equation.primitive.multiple_results else [results]


def _is_static(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _spread(x: Any, shape: tuple[Any, ...], axes: Sequence[int]) -> Spread:
    """`lax.broadcast_in_dim`, put off."""
    x = x.value if isinstance(x, Spread) else x
    sizes: list[Any] = [1] * len(shape)
    for size, axis in zip(np.shape(x), axes, strict=True):
        sizes[axis] = size
    if tuple(sizes) != np.shape(x):
        now = not isinstance(x, Tracer)
        with jax.ensure_compile_time_eval() if now else contextlib.nullcontext():
            x = lax.reshape(x, tuple(sizes))
    return Spread(x, tuple(shape))


def _whole(x: Any) -> Any:
    if not isinstance(x, Spread):
        return x
    if np.shape(x.value) == x.shape:
        return x.value
    return lax.broadcast_in_dim(x.value, x.shape, tuple(range(len(x.shape))))


def _pool(name: str, border: float, x: Any, *, window_dimensions: Any, window_strides: Any,
          padding: Any, base_dilation: Any, window_dilation: Any) -> Any:  # fmt: skip
    window, strides = tuple(window_dimensions), tuple(window_strides)
    if (
        x.ndim != 4
        or (window[0], window[-1]) != (1, 1)
        or {*base_dilation, *window_dilation} != {1}
    ):
        raise NotImplementedError(f"a window of {window} over {x.ndim} axes")
    if any(map(any, padding)):
        x = _pad(x, border, padding_config=[(*pair, 0) for pair in padding])
    # Looked up by name: the converter has put its own in there.
    pooled = getattr(nn, name)(x, window_shape=window[1:-1], strides=strides[1:-1], padding="VALID")
    return pooled if name == "max_pool" else pooled * float(math.prod(window))


def _pad(x: Any, border: Any, *, padding_config: Sequence[tuple[int, int, int]]) -> Any:
    """`lax.pad`, which the converter does not take with a symbol among the sizes."""
    for axis, (_, _, between) in enumerate(padding_config):
        if between:
            x = _spread_axis(x, axis, between + 1, border)
    edges = [(max(low, 0), max(high, 0)) for low, high, _ in padding_config]
    x = jnp.pad(x, edges, constant_values=float(border)) if any(map(any, edges)) else x
    for axis, (low, high, _) in enumerate(padding_config):
        if min(low, high) < 0:
            x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
    return x


def _spread_axis(x: Any, axis: int, stride: int, between: Any) -> Any:
    """Puts stride - 1 values between those of an axis."""
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    x = lax.reshape(x, (*before, size, 1, *after))
    edges = [(0, stride - 1) if i == axis + 1 else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, edges, constant_values=float(between))
    x = lax.reshape(x, (*before, size * stride, *after))
    return lax.slice_in_dim(x, 0, (size - 1) * stride + 1, axis=axis)


def _convolve(x: Any, kernel: Any, *, padding: Any, lhs_dilation: Any, **params: Any) -> Any:
    """A transposed convolution is one of pixels that are spread: the converter's has stride 1."""
    if max(lhs_dilation) > 1:
        axes = params["dimension_numbers"].lhs_spec[2:]
        config = [(0, 0, 0)] * x.ndim
        for axis, (low, high), stride in zip(axes, padding, lhs_dilation, strict=True):
            config[axis] = (low, high, stride - 1)
        x = _pad(x, 0, padding_config=config)
        padding, lhs_dilation = [(0, 0)] * len(axes), (1,) * len(axes)
    return lax.conv_general_dilated_p.bind(
        x, kernel, padding=tuple(padding), lhs_dilation=lhs_dilation, **params
    )


def _stack(*arrays: Any, axis: int) -> Any:
    shape = arrays[0].shape
    widened = [lax.reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in arrays]
    return lax.concatenate(widened, axis)


def _unstack(x: Any, *, axis: int) -> list[Any]:
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    parts = [lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(x.shape[axis])]
    return [lax.reshape(part, shape) for part in parts]


# Instead of what the converter has for them.
_REPLACED: dict[str, Callable[..., Any]] = {
    "pad": _pad,
    "conv_general_dilated": _convolve,
    "stack": _stack,  # which jax has since 0.10, and the converter does not know
    "unstack": _unstack,
    "reduce_window_max": functools.partial(_pool, "max_pool", -math.inf),
    "reduce_window_sum": functools.partial(_pool, "avg_pool", 0.0),
}
