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
from flaxcnn.models._registry import create_model, variant
from flaxcnn.weights.rules import CONVENTIONS, Rule, Transform
from flaxcnn.weights.state_dict import find_tensors, shape_of, to_float32

Array = np.ndarray
Path = tuple[str, ...]


class Source(NamedTuple):
    """Where a leaf of our variables comes from: their name of it, and the change of its layout.

    `bias_before` is the name of a bias that is taken off it, `constant` what it is where they have
    nothing (see `Rule`).
    """

    name: str
    transform: Transform | None
    shape: tuple[int, ...]  # ours
    bias_before: str | None = None
    constant: float | None = None

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
        """The shapes of the up to two of their arrays that ours is made of, by name."""
        if self.constant is not None:
            return {}
        shapes = {self.name: self.their_shape}
        return shapes | ({self.bias_before: self.shape} if self.bias_before else {})

    def read(self, tensors: Mapping[str, Array]) -> Array:
        """Makes our array of theirs."""
        if self.constant is not None:
            return np.full(self.shape, self.constant, np.float32)
        value = self.to_ours(tensors[self.name])
        return value - tensors[self.bias_before] if self.bias_before else value

    def write(self, value: Array) -> dict[str, Array]:
        """Makes theirs of ours; a bias that we do not have is zero.

        Raises UserError where they have nothing and ours is not the constant that stands for it.
        """
        if self.constant is not None:
            if not np.array_equal(value, np.full(self.shape, self.constant, np.float32)):
                raise UserError(
                    f"the layout has no {self.name}, which must be {self.constant:.6g}: fold "
                    "BatchNorm into the convolutions first"
                )
            return {}
        tensors = {self.name: np.ascontiguousarray(self.to_theirs(value))}
        return tensors | ({self.bias_before: np.zeros_like(value)} if self.bias_before else {})


def convert(
    name: str,
    tensors: Mapping[str, Any],
    layout: str,
    *,
    key: jax.Array | None = None,
    input_shape: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> dict[str, dict[str, Any]]:
    """Turns another library's weights into variables of the named network.

    `tensors` are arrays by the other library's names, `layout` is "torchvision", "timm", "keras",
    "caffe", "tflite" or "darknet" (`find_layout`), or "flaxcnn", which every network has: our own
    paths, as "params/stem/kernel". `kwargs` go to `create_model`; `input_shape` is that of an
    image, (height, width, channels), where the weights are for another than the network's own.
    Returns {"params": ..., "batch_stats": ...} of float32 arrays.

    Arrays may be NumPy's, JAX's or PyTorch's, in half precision too, `tensors` a whole checkpoint
    ({"state_dict": ..., "epoch": 90}), and all its names prefixed, by "module." for one (see
    `state_dict.py`).

    With a `num_classes` that is not the weights', the head is new, which a UserWarning says: its
    values are those of `model.init(key, ...)`, where `key` is `jax.random.key(0)` unless given. So
    it is with any `num_classes` where the weights have no head (Keras' files called "notop").
    With `num_classes=0` or `features_only`, the head's tensors, and those of stages that are not
    computed, are left out. So are those of auxiliary classifiers that the network does not have,
    with a UserWarning that names them.

    Raises UserError that lists every missing and every unexpected name and every clash of shapes.
    """
    model = create_model(name, **kwargs)
    input_shape = input_shape or variant(name).input_shape
    sources = list_sources(name, model, layout, input_shape)
    tensors = rename_tensors(model, layout, tensors)
    shapes = {n: shape_of(tensor) for n, tensor in tensors.items()}
    head, classes = set[Path](), 0
    if kwargs.get("num_classes"):
        head = _find_missing_head(model, sources, shapes, input_shape)
        if not head:
            head, classes = _find_other_head(name, model, layout, sources, shapes, input_shape)
    read = {path: source for path, source in sources.items() if path not in head}
    needed, known = _list_shapes(read), _list_shapes(sources)
    unexpected, unused = _sort_others(
        [n for n in tensors if n not in known], name, layout, input_shape, kwargs
    )
    problems = [f"missing {n}" for n in sorted(set(needed) - set(tensors))]
    problems += [f"unexpected {n}" for n in unexpected]
    problems += [
        f"{n} has shape {shapes[n]}, and not {shape}"
        for n, shape in needed.items()
        if n in tensors and shapes[n] != shape
    ]
    if problems:
        raise UserError(f"weights for {name} in layout {layout}: " + "; ".join(problems))
    if unused:
        warnings.warn(f"{name}: weights not used: {', '.join(unused)}", stacklevel=2)
    flat: dict[Path, Any] = {}
    if head:
        leaves = ", ".join("/".join(path[1:]) for path in sorted(head))
        why = f"are for {classes} classes, and num_classes is {kwargs['num_classes']}"
        why = why if classes else "have no head"
        warnings.warn(f"{name}: the weights {why}: {leaves} are new", stacklevel=2)
        flat |= _initialize(model, input_shape, head, key)
    for path, source in read.items():
        arrays = {n: to_float32(n, tensors[n]) for n in source.their_shapes}
        flat[path] = np.array(source.read(arrays), order="C")  # a copy: theirs may change
    return traverse_util.unflatten_dict({path: flat[path] for path in sources})


def count_classes(
    name: str,
    tensors: Mapping[str, Any],
    layout: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> int:
    """How many classes weights are for; arguments as for `convert`, without `num_classes`.

    0 where they have no head; where it cannot be said, it is the network's own number. Raises
    UserError if the network has no such layout.
    """
    model: Any = create_model(name, **kwargs)
    input_shape = input_shape or variant(name).input_shape
    sources = list_sources(name, model, layout, input_shape)
    found = rename_tensors(model, layout, tensors)
    shapes = {n: shape_of(tensor) for n, tensor in found.items()}
    if _find_missing_head(model, sources, shapes, input_shape):
        return 0
    _, classes = _find_other_head(name, model, layout, sources, shapes, input_shape)
    return classes or model.num_classes


def export(
    name: str,
    variables: Mapping[str, Any],
    layout: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> dict[str, Array]:
    """Turns variables of the named network into arrays by another library's names.

    The inverse of `convert`, with the same `layout`, `input_shape` and `kwargs`; `convert` gets the
    same bits back. Raises UserError if the variables are not this network's.
    """
    sources = list_sources(name, create_model(name, **kwargs), layout, input_shape)
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


def list_sources(
    name: str, model: nn.Module, layout: str, input_shape: tuple[int, ...] | None = None
) -> dict[Path, Source]:
    """Lists where every leaf of the network's variables comes from, by its path in them.

    `input_shape` as for `convert`. Raises UserError if the network has no such layout.
    """
    input_shape = tuple(input_shape or variant(name).input_shape)
    if layout == "flaxcnn":
        leaves = trace_shapes(model, input_shape)
        return {path: Source("/".join(path), None, shape) for path, shape in leaves.items()}
    layouts = list_layouts(model)
    if layout not in layouts:
        known = ", ".join(layouts) or "none"
        raise UserError(f"{name} has no weights in layout {layout!r}: it has {known}")
    rules, conventions = layouts[layout](model), CONVENTIONS[layout]
    leaves = trace_shapes(model, input_shape)
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
        constant = rule.constants.get(path[-1])
        sources[path] = Source(their_name, transform, shape, bias, constant)
    return sources


def list_layouts(model: nn.Module) -> Mapping[str, Any]:
    """The layouts that the network's weights come in, and the function of the rules of each."""
    return getattr(_family(model), "LAYOUTS", {})


def rename_tensors(model: nn.Module, layout: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint by the names that the layout has for them."""
    others = getattr(_family(model), "OTHER_NAMES", {}).get(layout, ())
    renamed = {}
    for name, tensor in find_tensors(tensors, CONVENTIONS[layout]).items():
        for pattern, ours in others:
            name = re.sub(f"^{pattern}", ours, name)
        renamed[name] = tensor
    return renamed


@functools.lru_cache(maxsize=16)  # tracing a deep network takes seconds
def trace_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[Path, tuple[int, ...]]:
    """The shape of every leaf of the network's variables, by its path in them."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    leaves: dict[Path, Any] = traverse_util.flatten_dict(shapes)  # pyright: ignore
    return {path: leaf.shape for path, leaf in leaves.items()}


def _list_shapes(sources: Mapping[Path, Source]) -> dict[str, tuple[int, ...]]:
    """The shapes of their arrays, by name."""
    return {n: shape for source in sources.values() for n, shape in source.their_shapes.items()}


def _find_missing_head(
    model: Any,
    sources: Mapping[Path, Source],
    shapes: Mapping[str, Any],
    input_shape: tuple[int, ...],
) -> set[Path]:
    """The leaves that weights without a head lack: modules after the stages, the last among them.

    Nothing where they lack other leaves, or none.
    """
    modules: dict[Path, list[bool]] = {}
    for path, source in sources.items():
        found = [n in shapes for n in source.their_shapes]
        modules.setdefault(path[1:2], []).extend(found)
    lacking = {path for path in sources if not any(modules[path[1:2]] or [True])}
    if not any(path[1] == "classifier" for path in lacking) or not hasattr(model, "features_only"):
        return set()
    stages = trace_shapes(model.clone(features_only=True), input_shape)
    return set() if lacking & stages.keys() else lacking


def _find_other_head(
    name: str,
    model: Any,
    layout: str,
    sources: Mapping[Path, Source],
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, ...] | None = None,
) -> tuple[set[Path], int]:
    """The leaves whose tensors are for another number of classes, and that number.

    Nothing and 0 if there are none, or if tensors do not agree on the number.
    """
    if all(shapes.get(n, shape) == shape for n, shape in _list_shapes(sources).items()):
        return set(), 0
    # A leaf belongs to the head if one class more changes its shape.
    more = model.clone(num_classes=model.num_classes + 1)
    larger = list_sources(name, more, layout, input_shape)
    head = {path for path, source in sources.items() if source.shape != larger[path].shape}
    counts = set()
    for path in head:
        theirs = shapes.get(sources[path].name)
        if theirs is None:
            continue
        if len(theirs) != len(sources[path].their_shape):
            return set(), 0
        sizes = list(zip(sources[path].their_shape, larger[path].their_shape, theirs, strict=True))
        if any(a == b != c for a, b, c in sizes):
            return set(), 0
        # Of anchors, each has its classes.
        counts |= {model.num_classes + (c - a) / (b - a) for a, b, c in sizes if a != b}
    classes = counts.pop() if len(counts) == 1 else 0
    if classes == model.num_classes or classes < 1 or classes % 1:
        return set(), 0
    return head, int(classes)


def _sort_others(
    names: list[str],
    name: str,
    layout: str,
    input_shape: tuple[int, ...],
    kwargs: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Of names that the network does not know: those that nobody knows, and those to warn of."""
    names = [n for n in names if not re.fullmatch(CONVENTIONS[layout].ignored, n)]
    auxiliary = re.compile(_family(create_model(name)).__dict__.get("AUXILIARY", "$^"))
    unused = [n for n in names if auxiliary.match(n)]
    unexpected = [n for n in names if not auxiliary.match(n)]
    cuts = ("num_classes", "features_only", "out_indices")
    if names and (kwargs.get("num_classes") == 0 or kwargs.get("features_only")):
        uncut = {argument: value for argument, value in kwargs.items() if argument not in cuts}
        whole = _list_shapes(list_sources(name, create_model(name, **uncut), layout, input_shape))
        return [n for n in unexpected if n not in whole], []
    return unexpected, unused


def _initialize(
    model: nn.Module, input_shape: tuple[int, ...], paths: set[Path], key: jax.Array | None
) -> dict[Path, Array]:
    """The leaves of `model.init` at `paths`."""

    @jax.jit  # of which XLA compiles what these leaves need
    def init(key):
        variables = model.init(key, jnp.zeros((1, *input_shape)), train=False)
        leaves: dict[Path, Any] = traverse_util.flatten_dict(variables)  # pyright: ignore
        return {path: leaves[path] for path in paths}

    leaves = init(jax.random.key(0) if key is None else key)
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def _find(rules: list[Rule], path: str, name: str, layout: str) -> tuple[Rule, str]:
    for rule in rules:
        module = rule.rename(path)
        if module is not None:
            return rule, module
    raise LookupError(f"no rule of layout {layout} is about {path} of {name}")


def _family(model: nn.Module) -> Any:
    """The module with the names of the networks of `models/x.py`: `weights/names/x.py`."""
    family = type(model).__module__.rpartition(".")[2]
    module = f"flaxcnn.weights.names.{family}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # an import within it
            raise
        return importlib.import_module("flaxcnn.weights.names")  # without layouts
