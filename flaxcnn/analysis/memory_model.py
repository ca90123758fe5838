"""What a program takes, reckoned from its text where no compiler for the chip is at hand.

A model of what XLA does on accelerators. Element-wise operations are computed where their result is
used, from the arrays they begin with, and take neither memory nor traffic of their own; where they
bring several large arrays together (the sum of a residual block, a gradient of BatchNorm) the
result is written. Convolutions, products, reductions and gathers read their arguments and write
their results. An array lives from there to its last use.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.analysis.interpret import find_called, open_jaxpr

_WRITING = (  # beginnings of their names
    *("convolve", "conv_general", "dot_general", "reduce", "arg", "gather", "scatter", "sort"),
    *("cum", "select_and", "cond", "while"),
)
_LARGE = 0.5  # of the result: an array that it is computed from counts as one of several


@dataclass(frozen=True, eq=False)
class _Array:
    """A value: written to memory, or computed where it is used from the written ones `sources`."""

    bytes: float
    sources: frozenset["_Array"] | None = None  # None: written

    @property
    def read(self) -> frozenset["_Array"]:
        """What is read for it."""
        return frozenset((self,)) if self.sources is None else self.sources


_NOTHING = _Array(0.0, frozenset())


@dataclass(frozen=True)
class _Operation:
    """What it reads and writes, `times` in a step."""

    name: str
    reads: frozenset[_Array]
    writes: tuple[_Array, ...]
    times: int


def reckon(closed: Any) -> tuple[float, float]:
    """Bytes of memory beside arguments and results, and bytes read and written, of a jaxpr.

    The outermost loop, over the steps of a call, counts as one step.
    """
    operations: list[_Operation] = []
    arguments = [_Array(_bytes(var)) for var in closed.jaxpr.invars]
    results = _walk(closed.jaxpr, arguments, operations, times=0)
    outside = {*arguments, *_union(results)}
    return _peak(operations, outside), _traffic(operations)


def measure_activations(program: Any) -> tuple[float, float]:
    """Bytes that a network's forward pass on its last argument, the images, takes.

    The most that is alive at a time, images included; and all that is written, which a backward
    pass would read. Weights count for nothing: of one image a bias is as large as what it is added
    to, and their sum would be written.
    """
    operations: list[_Operation] = []
    *weights, images = [_Array(0.0) for _ in program.jaxpr.invars]
    images = _Array(_bytes(program.jaxpr.invars[-1]))
    operations.append(_Operation("images", frozenset(), (images,), 1))
    _walk(program.jaxpr, [*weights, images], operations, times=0)
    seen, kept = {images}, [images]  # what depends on the images
    for operation in operations:
        if not seen.isdisjoint(operation.reads):
            seen.update(operation.writes)
            kept += operation.writes
    alive = [operation for operation in operations if not seen.isdisjoint(operation.writes)]
    return _peak(alive, set(weights)), sum(array.bytes for array in kept)


def _walk(
    jaxpr: Any, arguments: Sequence[_Array], operations: list[_Operation], times: int
) -> list[_Array]:
    """The results; appends what writes to `operations`. `times` is 0 outside of all loops."""
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {var: _Array(_bytes(var)) for var in jaxpr.constvars}

    def look_up(var: Any) -> _Array:  # a literal is not hashable in every jax, and takes nothing
        return _NOTHING if hasattr(var, "val") else values[var]

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [look_up(var) for var in equation.invars]
        if name == "scan":
            outputs = _walk_scan(equation, inputs, operations, times)
        elif name == "cond" and equation.params.get("branches_platforms"):  # the last: by default
            outputs = _walk(equation.params["branches"][-1].jaxpr, inputs[1:], operations, times)
        elif (inner := find_called(equation)) is not None:
            outputs = _walk(inner, inputs, operations, times)
        else:
            outputs = _apply(equation, _union(inputs), operations, max(times, 1))
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [look_up(var) for var in jaxpr.outvars]


def _apply(
    equation: Any, sources: frozenset[_Array], operations: list[_Operation], times: int
) -> list[_Array]:
    """The results of an operation, which are written or not."""
    name, outputs = equation.primitive.name, []
    for var in equation.outvars:
        size = _bytes(var)
        large = sum(source.bytes >= _LARGE * size for source in sources)
        written = name.startswith(_WRITING) or (large > 1 and size > 0)
        outputs.append(_Array(size, None if written else sources))
    if new := tuple(array for array in outputs if array.sources is None):
        operations.append(_Operation(name, sources, new, times))
    return outputs


def _walk_scan(
    equation: Any, inputs: Sequence[_Array], operations: list[_Operation], times: int
) -> list[_Array]:
    """A loop: its body once, `length` times; the outermost one counts as one step."""
    inner = open_jaxpr(equation.params["jaxpr"])
    # What is sliced has an axis more outside: each jax counts constants and carries in its own way.
    arguments = [
        outer if _rank(var) == _rank(within) else _Array(_bytes(within))
        for outer, var, within in zip(inputs, equation.invars, inner.invars, strict=True)
    ]
    repeats = times * equation.params["length"] if times else 1
    outputs = _walk(inner, arguments, operations, repeats)
    for index, (var, within) in enumerate(zip(equation.outvars, inner.outvars, strict=True)):
        if _rank(var) != _rank(within):
            stacked = _Array(_bytes(var))
            operations.append(_Operation("stack", outputs[index].read, (stacked,), 1))
            outputs[index] = stacked
    return outputs


def _peak(operations: Sequence[_Operation], outside: set[_Array]) -> float:
    """The most bytes that are alive at one time, without arrays that are there all the time."""
    last = {array: index for index, op in enumerate(operations) for array in op.reads}
    ending: dict[int, float] = {}
    alive = peak = 0.0
    for index, operation in enumerate(operations):
        new = [array for array in operation.writes if array not in outside]
        for array in new:
            end = last.get(array, index)
            ending[end] = ending.get(end, 0.0) + array.bytes
        alive += sum(array.bytes for array in new)
        peak = max(peak, alive)
        alive -= ending.get(index, 0.0)
    return peak


def _traffic(operations: Sequence[_Operation]) -> float:
    """Bytes read and written. Reductions of the same arrays read them together, once."""
    total, reduced = 0.0, set()
    for operation in operations:
        total += operation.times * sum(array.bytes for array in operation.writes)
        if operation.name.startswith("reduce"):
            if operation.reads in reduced:
                continue
            reduced.add(operation.reads)
        total += operation.times * sum(array.bytes for array in operation.reads)
    return total


def _union(arrays: Iterable[_Array]) -> frozenset[_Array]:
    return frozenset().union(*(array.read for array in arrays))


def _rank(var: Any) -> int:
    return len(var.aval.shape)


def _bytes(var: Any) -> float:
    return abstract_bytes(var.aval)


def abstract_bytes(tree: Any) -> float:
    """Bytes of a tree of abstract arrays; a key of random numbers takes two words."""
    return float(
        sum(
            math.prod(x.shape)
            * (8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)
            for x in jax.tree.leaves(tree)
        )
    )
