"""The layers of a network in order of computation, with what each takes and sees.

The network is traced to a program, in which marks say where a module begins and ends.
"""

import contextlib
import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxcnn.analysis.field import Field, propagate
from flaxcnn.analysis.interpret import interpret
from flaxcnn.analysis.multiply_adds import find_loop, multiply_adds
from flaxcnn.errors import UserError


@dataclass(frozen=True)
class Call:
    """A module, or a pool outside of one, as it is called: without the modules within it.

    `shape` is that of its output for one image, without the batch. `forward` and `backward` are
    multiply-adds; those of `backward` give the gradients of the parameters, and of what depends on
    parameters. `field` is None where the output does not depend on the image.
    """

    path: tuple[str, ...]
    type: str
    shape: tuple[int, ...]
    forward: int
    backward: int
    field: Field | None


@dataclass(frozen=True)
class Traced:
    """A network on one image: its program, the shapes of its variables, and its stages' names.

    The program's results are the network's, and after them the stages'.
    """

    program: Any
    variables: dict[str, Any]
    stages: tuple[str, ...]


def trace(model: nn.Module, shape: Sequence[int], train: bool = False) -> Traced:
    """Traces a Linen module on one image of `shape`, (*size, channels); computes nothing.

    Raises UserError if the network cannot take such an image.
    """
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    known = inspect.signature(model.__call__).parameters
    off: dict[str, Any]
    now: dict[str, Any]
    off, now = ({"train": value} if "train" in known else {} for value in (False, train))
    stages: list[str] = []

    def initialize(image: Any) -> Any:
        return model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, image, **off)

    def apply(variables: Any, image: Any) -> Any:
        mutable = ["intermediates", "batch_stats"] if train else ["intermediates"]
        rngs: Any = {"dropout": jax.random.key(0)}
        with nn.intercept_methods(_mark):
            applied: Any = model.apply(variables, image, mutable=mutable, rngs=rngs, **now)
        outputs, state = applied
        found = state.get("intermediates", {}).get("stages", ({},))[0]
        stages.extend(found)
        return outputs, list(found.values())

    try:
        variables: Any = jax.eval_shape(initialize, image)

        program = jax.make_jaxpr(apply)(variables, image)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        sides, reason = "x".join(map(str, shape)), str(error).strip().split("\n")[0]
        raise UserError(f"the network cannot take {sides} images: {reason}") from error
    return Traced(program, dict(variables), tuple(stages))


def list_calls(traced: Traced) -> tuple[list[Call], list[Field | None]]:
    """The calls of a traced network in the order in which they end, and the stages' fields."""
    walk = _Walk()
    variables = jax.tree_util.tree_leaves_with_path(traced.variables)
    inputs = [_Value(True, path[0].key == "params") for path, _ in variables]
    rank = len(traced.program.in_avals[-1].shape) - 2
    image = _Value(True, False, Field.of_images(rank))
    results = walk.run(traced.program.jaxpr, [*inputs, image], 1)
    stages = results[len(results) - len(traced.stages) :]
    return walk.calls, [value.field for value in stages]


@dataclass(frozen=True)
class _Value:
    """Whether an array depends on an argument, on a parameter, and its field."""

    argument: bool = False
    trained: bool = False
    field: Field | None = None


@dataclass
class _Frame:
    """A module that has begun: multiply-adds so far, of itself alone."""

    path: tuple[str, ...] = ()
    type: str = ""
    forward: int = 0
    backward: int = 0


@dataclass
class _Walk:
    calls: list[Call] = field(default_factory=list)
    frames: list[_Frame] = field(default_factory=lambda: [_Frame()])
    last: tuple[int, ...] = ()

    def run(self, jaxpr: Any, inputs: Sequence[_Value], times: int) -> list[_Value]:
        def apply(equation: Any, values: list[_Value]) -> list[_Value]:
            name = equation.primitive.name
            if equation.primitive is _begin_p:
                params = equation.params
                self.frames.append(_Frame(params["path"], params["type"]))
                return values
            if equation.primitive is _end_p:
                self.end(equation, values[0].field)
                return values
            if found := find_loop(equation):
                inner, skipped, rounds = found
                outputs = self.run(inner, values[skipped:], times * rounds)
                whole = propagate(equation, [value.field for value in values])
                return [
                    _Value(o.argument, o.trained, f) for o, f in zip(outputs, whole, strict=True)
                ]
            argument = any(value.argument for value in values)
            trained = any(value.trained for value in values)
            fields = propagate(equation, [value.field for value in values])
            if all(value.argument for value in values):
                count = times * multiply_adds(equation)
                self.frames[-1].forward += count
                self.frames[-1].backward += count * sum(value.trained for value in values)
            if name in _POOLS:
                path = (*self.frames[-1].path, name := _POOLS[name])
                shape = equation.outvars[0].aval.shape[1:]
                self.calls.append(Call(path, name, shape, 0, 0, fields[0]))
            return [_Value(argument, trained, found) for found in fields]

        return interpret(jaxpr, inputs, apply, _Value())

    def end(self, equation: Any, known: Field | None) -> None:
        """Adds the module that ends; one within it that returned no array has no end."""
        path, shape = equation.params["path"], equation.outvars[0].aval.shape[1:]
        frame = self.frames.pop()
        while frame.path != path:
            within, frame = frame, self.frames.pop()
            frame.forward += within.forward
            frame.backward += within.backward
        self.calls.append(Call(path, frame.type, shape, frame.forward, frame.backward, known))


_POOLS = {"max_of_windows": "max_pool", "reduce_window_max": "max_pool"}


@contextlib.contextmanager
def pause_cycle_search() -> Iterator[None]:
    """For tracing: it makes many objects that stay, and Python searches them for half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mark(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module: Any = context.module
    arrays = [i for i, x in enumerate(args) if isinstance(x, jax.Array)]
    if context.method_name != "__call__" or not arrays:
        return call(*args, **kwargs)
    first, mark = arrays[0], {"path": module.path, "type": type(module).__name__}
    args = [*args[:first], _begin_p.bind(args[first], **mark), *args[first + 1 :]]
    leaves, tree = jax.tree.flatten(call(*args, **kwargs))
    if leaves and isinstance(leaves[0], jax.Array):
        leaves[0] = _end_p.bind(leaves[0], **mark)
    return jax.tree.unflatten(tree, leaves)


def mark_of_end(equation: Any) -> tuple[str, ...] | None:
    """The path of the module whose output an equation marks; None of another equation."""
    return equation.params["path"] if equation.primitive is _end_p else None


def _make_mark(name: str) -> Primitive:
    """The identity, found again in the jaxpr."""
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda x, **_: x)
    batching.defvectorized(primitive)
    mlir.register_lowering(primitive, lambda context, x, **_: [x])
    ad.deflinear2(primitive, lambda cotangent, x, **_: [cotangent])
    return primitive


_begin_p = _make_mark("begin")
_end_p = _make_mark("end")
