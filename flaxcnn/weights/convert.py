"""Weights of other libraries to variables of the same network here, and back."""

import functools
import importlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.models.registry import create_model, variant
from flaxcnn.weights.rules import LAYOUTS, Rule, Transform

Array = np.ndarray
Path = tuple[str, ...]


class Source(NamedTuple):
    """Where a leaf of our variables comes from: their name of it, and the change of its layout.

    `bias_before` is the name of a bias that is taken off it (see `Rule`).
    """

    name: str
    transform: Transform | None
    shape: tuple[int, ...]  # ours
    bias_before: str | None = None

    def to_theirs(self, value: Array) -> Array:
        """Changes our array into theirs."""
        return self.transform.to_theirs(value) if self.transform else value

    def to_ours(self, value: Array) -> Array:
        """Changes their array into ours."""
        return self.transform.to_ours(value, self.shape) if self.transform else value

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of their array."""
        return self.to_theirs(np.broadcast_to(np.float32(0), self.shape)).shape

    @property
    def their_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the one or two of their arrays that ours is made of, by name."""
        shapes = {self.name: self.their_shape}
        return shapes | ({self.bias_before: self.shape} if self.bias_before else {})

    def read(self, tensors: Mapping[str, Array]) -> Array:
        """Makes our array of theirs."""
        value = self.to_ours(tensors[self.name])
        return value - tensors[self.bias_before] if self.bias_before else value

    def write(self, value: Array) -> dict[str, Array]:
        """Makes theirs of ours; a bias that we do not have is zero."""
        tensors = {self.name: np.ascontiguousarray(self.to_theirs(value))}
        return tensors | ({self.bias_before: np.zeros_like(value)} if self.bias_before else {})


def convert(
    name: str, tensors: Mapping[str, Array], layout: str, **kwargs: Any
) -> dict[str, dict[str, Any]]:
    """Turns another library's weights into variables of the named network.

    `tensors` are arrays by the other library's names, `layout` is "torchvision", "timm", "keras"
    or "caffe"; `kwargs` go to `create_model`, as `num_classes=10` for weights of ten classes.
    Returns {"params": ..., "batch_stats": ...} of float32 arrays. Tensors of auxiliary classifiers
    that the network does not have are left out with a UserWarning that names them.

    Raises UserError that lists every missing and every unexpected name and every clash of shapes.
    """
    model = create_model(name, **kwargs)
    sources = list_sources(name, model, layout)
    known = {n: shape for s in sources.values() for n, shape in s.their_shapes.items()}
    tensors = {_rename(model, layout, n): tensor for n, tensor in tensors.items()}
    rest = [n for n in tensors if n not in known and not re.fullmatch(LAYOUTS[layout].ignored, n)]
    auxiliary = re.compile(_family(model).__dict__.get("AUXILIARY", "$^"))
    unused = [n for n in rest if auxiliary.match(n)]
    problems = [f"missing {n}" for n in sorted(set(known) - set(tensors))]
    problems += [f"unexpected {n}" for n in rest if n not in unused]
    problems += [
        f"{n} has shape {tensors[n].shape}, and not {shape}"
        for n, shape in known.items()
        if n in tensors and tensors[n].shape != shape
    ]
    if problems:
        raise UserError(f"weights for {name} in layout {layout}: " + "; ".join(problems))
    if unused:
        warnings.warn(f"{name}: weights not used: {', '.join(unused)}", stacklevel=2)
    flat = {
        path: np.ascontiguousarray(source.read(tensors), np.float32)
        for path, source in sources.items()
    }
    return traverse_util.unflatten_dict(flat)


def export(name: str, variables: Mapping[str, Any], layout: str, **kwargs: Any) -> dict[str, Array]:
    """Turns variables of the named network into arrays by another library's names.

    The inverse of `convert`, with the same `layout` and `kwargs`; `convert` gets the same bits
    back. Raises UserError if the variables are not this network's.
    """
    sources = list_sources(name, create_model(name, **kwargs), layout)
    flat: dict[Path, Array] = traverse_util.flatten_dict(dict(variables))  # pyright: ignore[reportAssignmentType]
    problems = [f"missing {'/'.join(path)}" for path in sources if path not in flat]
    problems += [f"unexpected {'/'.join(path)}" for path in flat if path not in sources]
    problems += [
        f"{'/'.join(path)} has shape {flat[path].shape}, and not {source.shape}"
        for path, source in sources.items()
        if path in flat and flat[path].shape != source.shape
    ]
    if problems:
        raise UserError(f"variables for {name}: " + "; ".join(problems))
    tensors: dict[str, Array] = {}
    for path, source in sources.items():
        tensors |= source.write(np.asarray(flat[path]))
    return tensors


def list_sources(name: str, model: nn.Module, layout: str) -> dict[Path, Source]:
    """Lists where every leaf of the network's variables comes from, by its path in them.

    Raises UserError if the network has no such layout.
    """
    layouts = getattr(_family(model), "LAYOUTS", {})
    if layout not in layouts:
        known = ", ".join(layouts) or "none"
        raise UserError(f"{name} has no weights in layout {layout!r}: it has {known}")
    rules, conventions = layouts[layout](model), LAYOUTS[layout]
    leaves = _trace_shapes(model, variant(name).input_shape)
    norms = {path[1:-1] for path in leaves if path[0] == "batch_stats"}
    sources = {}
    for path, shape in leaves.items():
        rule, module = _find(rules, "/".join(path[1:-1]), name, layout)
        names = conventions.norm_leaves if path[1:-1] in norms else conventions.leaves
        their_leaf = {**names, **rule.leaves}[path[-1]]
        transform = None
        if path[-1] == "kernel":
            transform = rule.kernel or conventions.kernels.get(len(shape))
        their_name = f"{module}{conventions.separator}{their_leaf}"
        bias = rule.rename_bias_before("/".join(path[1:-1])) if path[-1] == "mean" else None
        sources[path] = Source(their_name, transform, shape, bias)
    return sources


@functools.lru_cache(maxsize=16)  # tracing a deep network takes seconds
def _trace_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[Path, tuple[int, ...]]:
    """The shape of every leaf of the network's variables, by its path in them."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    leaves: dict[Path, Any] = traverse_util.flatten_dict(shapes)  # pyright: ignore
    return {path: leaf.shape for path, leaf in leaves.items()}


def _find(rules: list[Rule], path: str, name: str, layout: str) -> tuple[Rule, str]:
    for rule in rules:
        module = rule.rename(path)
        if module is not None:
            return rule, module
    raise LookupError(f"no rule of layout {layout} is about {path} of {name}")


def _rename(model: nn.Module, layout: str, name: str) -> str:
    """The layout's name of a tensor that files of other releases call differently."""
    for pattern, ours in getattr(_family(model), "OTHER_NAMES", {}).get(layout, ()):
        name = re.sub(f"^{pattern}", ours, name)
    return name


def _family(model: nn.Module) -> Any:
    """The module with the names of the networks of `models/x.py`: `weights/names/x.py`."""
    family = type(model).__module__.rpartition(".")[2]
    try:
        return importlib.import_module(f"flaxcnn.weights.names.{family}")
    except ModuleNotFoundError:
        return importlib.import_module("flaxcnn.weights.names")  # without layouts
