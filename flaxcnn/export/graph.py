"""A network's inference as a list of simple operations, which need nothing of JAX any more.

The jaxpr of a function of one image is walked: what does not depend on the image is computed here
and becomes a constant; what does becomes a node of one of the few operations of `operations.py`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.export.operations import IDENTITIES, PRIMITIVES, Node, Nodes, Unsupported, Value

CALLS = {  # what is walked into, and the parameter that holds its jaxpr
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat2"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "custom_jvp_call"), "call_jaxpr"),
    "custom_vjp_call": "call_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in the order of their computation; each value is the image, a node's or a constant.

    A value is referred to by an integer: 0 is the image, k > 0 the result of `nodes[k - 1]`, and
    k < 0 is `constants[-1 - k]`. `maps` is the first convolution with what follows it element by
    element (bias, activation); None in a network without convolutions.
    """

    nodes: list[Node]
    constants: list[np.ndarray]  # float32
    input_shape: tuple[int, ...]
    output: int
    maps: int | None


def trace(function: Callable[..., Any], variables: Any, input_shape: Sequence[int]) -> Graph:
    """The graph of `function(variables, images)` for one image, float32 [1, *input_shape].

    Raises UserError naming the first operation that has no counterpart.
    """
    shape = (1, *input_shape)
    program = jax.make_jaxpr(function)(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    if len(program.out_avals) != 1:
        raise UserError(f"the network has {len(program.out_avals)} outputs: one can be exported")
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    nodes = Nodes(shape)
    (output,) = _walk(program.jaxpr, program.consts, [*leaves, nodes.image], nodes)
    if not isinstance(output, Value):
        raise UserError("the network's output does not depend on the image")
    return _finish(nodes, output)


def _walk(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], nodes: Nodes, scope: str = ""
) -> list[Any]:
    """The results of a jaxpr: each a Value or a constant array. `scope` is the module it is in."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))

    def look_up(var: Any) -> Any:
        return np.asarray(var.val) if hasattr(var, "val") else known[var]

    for equation in jaxpr.eqns:
        inputs = [look_up(var) for var in equation.invars]
        place = str(equation.source_info.name_stack) or scope
        if equation.primitive.name in CALLS:
            body = equation.params[CALLS[equation.primitive.name]]
            inner, inner_consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
            results = _walk(inner, inner_consts, inputs, nodes, place)
        elif not any(isinstance(x, Value) for x in inputs):
            results = _compute(equation, inputs)
        else:
            results = _convert(equation, inputs, nodes, place)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [look_up(var) for var in jaxpr.outvars]


def _convert(equation: Any, inputs: list[Any], nodes: Nodes, scope: str) -> list[Any]:
    name = equation.primitive.name
    try:
        if name not in PRIMITIVES:
            raise Unsupported("it is not among those that a page can compute")
        for var in equation.outvars:
            dtype = var.aval.dtype
            if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float32:
                raise Unsupported(f"it computes in {dtype}, and a page in float32")
        return PRIMITIVES[name](nodes, equation, *inputs)
    except Unsupported as error:
        place = f" of {scope}" if scope else ""
        message = f"the operation `{name}`{place} cannot be exported to a page: {error}"
        raise UserError(message) from None


# Constants. Those that repeat a smaller array stay views of it, which take no memory.


def _compute(equation: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    name, known = equation.primitive.name, equation.params
    shapes = [var.aval.shape for var in equation.outvars]
    if name in IDENTITIES:
        return inputs
    if name == "broadcast_in_dim":
        spread = [1] * len(shapes[0])
        for size, axis in zip(inputs[0].shape, known["broadcast_dimensions"], strict=True):
            spread[axis] = size
        return [np.broadcast_to(inputs[0].reshape(spread), shapes[0])]
    if name == "iota":
        axis, size = known["dimension"], known["shape"][known["dimension"]]
        line = np.arange(size, dtype=known["dtype"])
        line = line.reshape([size if i == axis else 1 for i in range(len(shapes[0]))])
        return [np.broadcast_to(line, shapes[0])]
    results = equation.primitive.bind(*map(jnp.asarray, inputs), **known)
    return [np.asarray(x) for x in (results if equation.primitive.multiple_results else [results])]


# What the nodes of all equations still lack


def _finish(nodes: Nodes, output: Value) -> Graph:
    """Merges what a convolution computes at once, and drops what nothing reads."""
    merged, read, kept = _merge(nodes, output.ref), {output.ref}, []
    for ref in range(len(merged), 0, -1):
        node = merged[ref - 1]
        if node is not None and ref in read:
            read.update(node.inputs)
            kept.append((ref, node))
    kept.reverse()
    used = sorted((ref for ref in read if ref < 0), reverse=True)
    new = {0: 0} | {ref: index for index, (ref, _) in enumerate(kept, 1)}
    new |= {ref: -index for index, ref in enumerate(used, 1)}
    made = [dataclasses.replace(node, inputs=[new[x] for x in node.inputs]) for _, node in kept]
    constants, last = [nodes.constants[-1 - ref] for ref in used], new[output.ref]
    return Graph(made, constants, nodes.image.shape, last, _find_maps(made, last))


_ELEMENTWISE = ("unary", "binary", "select")


def _merge(nodes: Nodes, output: int) -> list[Node | None]:
    """Bias and limits (ReLU, ReLU6) become part of the convolution or product before them.

    What was merged into its reader is None in the result; references to the reader stay.
    """
    uses = Counter([output, *(x for node in nodes.made for x in node.inputs)])
    merged: list[Node | None] = list(nodes.made)
    for index, node in enumerate(nodes.made):
        if node.op != "binary":
            continue
        place = 0 if node.inputs[1] < 0 else 1
        before, constant = node.inputs[place], node.inputs[1 - place]
        source = merged[before - 1] if before > 0 > constant and uses[before] == 1 else None
        if source is None or source.op not in ("conv", "matmul"):
            continue
        whole = _absorb(source, node.attributes["name"], constant, nodes.constants[-1 - constant])
        if whole is not None:
            merged[before - 1], merged[index] = None, whole
    return merged


def _absorb(source: Node, name: str, ref: int, constant: np.ndarray) -> Node | None:
    """A convolution or product that adds, or is limited by, a constant as well, if it can."""
    known = source.attributes
    limited = "low" in known or "high" in known
    if name == "add" and len(source.inputs) == 2 and not limited:
        features = source.shape[-1:]
        if constant.shape[-1:] == features and (constant.size,) == features:
            shapes = [*source.shapes, constant.shape]
            return dataclasses.replace(source, inputs=[*source.inputs, ref], shapes=shapes)
    if constant.size == 1 and np.isfinite(constant).all():
        if name == "max" and not limited:
            return dataclasses.replace(source, attributes={**known, "low": constant.item()})
        if name == "min" and "high" not in known:
            return dataclasses.replace(source, attributes={**known, "high": constant.item()})
    return None


def _find_maps(nodes: Sequence[Node], output: int) -> int | None:
    first = next((ref for ref, node in enumerate(nodes, 1) if node.op == "conv"), None)
    if first is None:
        return None
    while first != output:
        readers = [ref for ref, node in enumerate(nodes, 1) if first in node.inputs]
        follows = nodes[readers[0] - 1]
        rest = [x for x in follows.inputs if x != first]
        if len(readers) > 1 or follows.op not in _ELEMENTWISE or any(x >= 0 for x in rest):
            break
        first = readers[0]
    return first
