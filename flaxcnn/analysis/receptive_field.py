"""Which pixels a value of a network depends on: by formula, and by gradient."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from flaxcnn.analysis.field import Field
from flaxcnn.analysis.interpret import find_called, open_jaxpr
from flaxcnn.analysis.layers import list_calls, mark_of_end, trace
from flaxcnn.errors import UserError
from flaxcnn.layers.pool_windows import reduce_windows

Array = jax.Array


class ReceptiveField(NamedTuple):
    """The pixels that one value depends on; each tuple has an entry per axis of the image.

    `size` is the side of the field, over all paths through the network, the border counted as
    image; `stride` how far it moves from value to value (1/2 after upsampling); `padding` how far
    the first value's field reaches into the border. `everywhere` says that the value depends on
    the whole image besides: through a gate, as in squeeze-and-excitation, or because it has no
    place of its own after a global pool or a dense layer. The figures are then the local field,
    that of the paths with a place, or of the last maps.
    """

    size: tuple[int, ...]
    stride: tuple[float, ...]
    padding: tuple[float, ...]
    everywhere: bool


def receptive_fields(model: nn.Module, shape: Sequence[int]) -> dict[str, ReceptiveField]:
    """The field of each layer's output by its path, then of each stage's by its name.

    Layers are in order of computation, stages those of `feature_info`; a layer that is called again
    is "PATH#2". `shape` is (height, width, channels), or another number of sizes and the channels.
    By formula (Araujo, Norris, Sim, Distill 2019): nothing is computed, and no size of image is
    too small. Raises UserError if the network cannot take such an image.
    """
    traced = trace(model, shape)
    calls, stages = list_calls(traced)
    found: dict[str, ReceptiveField] = {}
    count: dict[str, int] = {}
    for call in calls:
        name = "/".join(call.path)
        count[name] = count.get(name, 0) + 1
        if call.field is not None and name:
            found[name if count[name] == 1 else f"{name}#{count[name]}"] = _describe(call.field)
    for name, field in zip(traced.stages, stages, strict=True):
        if field is not None:
            found[name] = _describe(field)
    return found


def _describe(field: Field) -> ReceptiveField:
    local = field.last_maps
    return ReceptiveField(
        local.size,
        tuple(map(float, local.stride)),
        tuple(map(float, local.padding)),
        field.everywhere or not field.located,
    )


def influence(
    model: nn.Module,
    shape: Sequence[int],
    name: str,
    variables: Any = None,
    images: Any = None,
) -> np.ndarray:
    """How much each pixel moves the value in the middle of a layer's maps: float [*size].

    The gradient's absolute value, summed over channels. With `variables` and `images` [N, *size, C]
    it is that of the network itself, the mean over the images: the effective field (Luo et al.
    2016). Without them every path counts: kernels are positive, the mean of what they see, maxima
    are means, BatchNorm is the identity, so that it is above zero in all of the receptive field
    (unless that is so deep that float32 ends) and nowhere else. `name` is a layer's path or a
    stage's. Raises UserError for one that the network has not, or if only one of `variables` and
    `images` is given.
    """
    if (variables is None) != (images is None):
        raise UserError("influence: variables and images are given together, or neither")
    traced = trace(model, shape)
    program, every_path = traced.program, variables is None
    if variables is None:
        variables = jax.tree_util.tree_map_with_path(_let_through, traced.variables)
        images = jnp.ones((1, *shape))
    leaves = jax.tree.leaves(variables)

    def middle(image: Array, leaves: list[Array]) -> Array:
        kept: dict[str, Array] = {}
        results = _evaluate(program, [*leaves, image[None]], every_path, kept)
        stages = results[len(results) - len(traced.stages) :]
        kept |= dict(zip(traced.stages, stages, strict=True))
        if name not in kept:
            raise UserError(f"no layer or stage is called {name!r}; there are {', '.join(kept)}")
        y = kept[name]
        place = tuple(size // 2 for size in y.shape[1:-1])
        return y[(0, *place)].sum()

    gradient = jax.jit(jax.grad(middle))
    gradients = [
        np.abs(gradient(image, leaves)).sum(-1) for image in jnp.asarray(images, jnp.float32)
    ]
    return np.mean(gradients, axis=0)


def extent(values: Any) -> tuple[int, ...]:
    """The sides of the smallest box that holds all values of [*size] that are not zero."""
    axes = [np.flatnonzero(np.any(values, axis=other)) for other in _others(np.ndim(values))]
    return tuple(int(places[-1] - places[0]) + 1 if places.size else 0 for places in axes)


def _others(rank: int) -> list[tuple[int, ...]]:
    return [tuple(j for j in range(rank) if j != i) for i in range(rank)]


def _let_through(path: Any, leaf: Any) -> Array:
    name = str(path[-1].key)
    values = {"bias": 0.0, "mean": 0.0, "kernel": 1 / max(math.prod(leaf.shape[:-1]), 1)}
    return jnp.full(leaf.shape, values.get(name, 1.0), leaf.dtype)


def _evaluate(
    program: Any, inputs: Sequence[Any], every_path: bool, kept: dict[str, Array]
) -> list[Any]:
    """The results of a program; adds to `kept` what modules return. Maxima of windows are means."""
    jaxpr = open_jaxpr(program)
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True))
    known |= zip(jaxpr.invars, inputs, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        path = mark_of_end(equation)
        if path is not None:
            kept["/".join(path)] = values[0]
            results = values
        elif every_path and equation.primitive.name == "max_of_windows":
            windows = equation.params["windows"]
            total = reduce_windows(values[0], windows, 0, lax.add)
            results = [total / math.prod(windows.shape)]
        elif find_called(equation) is not None:
            called = next(
                value
                for name in ("jaxpr", "call_jaxpr", "fun_jaxpr")
                if (value := equation.params.get(name)) is not None
            )
            results = _evaluate(called, values, every_path, kept)
        else:
            names = list(dict.fromkeys(x for x in equation.invars if not hasattr(x, "val")))
            part = {"invars": names, "outvars": equation.outvars, "eqns": [equation]}
            one = ClosedJaxpr(jaxpr.replace(constvars=(), **part), ())
            results = jaxpr_as_fun(one)(*map(read, names))
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
