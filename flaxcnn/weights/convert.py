"""Weights of other libraries to variables of the same network here, and back."""

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
    """Where a leaf of our variables comes from: their name of it, and the change of its layout."""

    name: str
    transform: Transform | None
    shape: tuple[int, ...]  # ours

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
    known = {source.name for source in sources.values()}
    rest = [n for n in tensors if n not in known and not re.fullmatch(LAYOUTS[layout].ignored, n)]
    auxiliary = re.compile(_family(model).__dict__.get("AUXILIARY", "$^"))
    unused = [n for n in rest if auxiliary.match(n)]
    problems = [f"missing {n}" for n in sorted(known - set(tensors))]
    problems += [f"unexpected {n}" for n in rest if n not in unused]
    problems += [
        f"{s.name} has shape {tensors[s.name].shape}, and not {s.their_shape}"
        for s in sources.values()
        if s.name in tensors and tensors[s.name].shape != s.their_shape
    ]
    if problems:
        raise UserError(f"weights for {name} in layout {layout}: " + "; ".join(problems))
    if unused:
        warnings.warn(f"{name}: weights not used: {', '.join(unused)}", stacklevel=2)
    flat = {
        path: np.ascontiguousarray(source.to_ours(tensors[source.name]), np.float32)
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
    return {
        source.name: np.ascontiguousarray(source.to_theirs(np.asarray(flat[path])))
        for path, source in sources.items()
    }


def list_sources(name: str, model: nn.Module, layout: str) -> dict[Path, Source]:
    """Lists where every leaf of the network's variables comes from, by its path in them.

    Raises UserError if the network has no such layout.
    """
    layouts = getattr(_family(model), "LAYOUTS", {})
    if layout not in layouts:
        known = ", ".join(layouts) or "none"
        raise UserError(f"{name} has no weights in layout {layout!r}: it has {known}")
    rules, conventions = layouts[layout](model), LAYOUTS[layout]
    images = jax.ShapeDtypeStruct((1, *variant(name).input_shape), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    leaves: dict[Path, Any] = traverse_util.flatten_dict(shapes)  # pyright: ignore
    norms = {path[1:-1] for path in leaves if path[0] == "batch_stats"}
    sources = {}
    for path, leaf in leaves.items():
        rule, module = _find(rules, "/".join(path[1:-1]), name, layout)
        names = conventions.norm_leaves if path[1:-1] in norms else conventions.leaves
        their_leaf = {**names, **rule.leaves}[path[-1]]
        transform = None
        if path[-1] == "kernel":
            transform = rule.kernel or conventions.kernels.get(len(leaf.shape))
        sources[path] = Source(
            f"{module}{conventions.separator}{their_leaf}", transform, leaf.shape
        )
    return sources


def _find(rules: list[Rule], path: str, name: str, layout: str) -> tuple[Rule, str]:
    for rule in rules:
        module = rule.rename(path)
        if module is not None:
            return rule, module
    raise LookupError(f"no rule of layout {layout} is about {path} of {name}")


def _family(model: nn.Module) -> Any:
    """The module with the names of the networks of `models/x.py`: `weights/names/x.py`."""
    family = type(model).__module__.rpartition(".")[2]
    try:
        return importlib.import_module(f"flaxcnn.weights.names.{family}")
    except ModuleNotFoundError:
        return importlib.import_module("flaxcnn.weights.names")  # without layouts
