"""A network with the weights that somebody published: where they are, what they want, loading."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.models._registry import ALIASES, create_model, variant
from flaxcnn.weights import catalogue, hub
from flaxcnn.weights.convert import convert, count_classes, trace_shapes
from flaxcnn.weights.formats import own_config, read_tensors
from flaxcnn.weights.labels import class_names
from flaxcnn.weights.layouts import find_layout
from flaxcnn.weights.origins import (
    Origin,
    describe_pixels,
    find_origin,
    list_origins,
)
from flaxcnn.weights.preprocessing import Preprocessing, reads_bgr

_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository, in this order
_IGNORED = ("num_classes", "in_chans", "global_pool", "drop_rate", "img_size")  # of `model_args`


@dataclasses.dataclass(frozen=True)
class Located:
    """Weights that lie on this machine, and what is known of them.

    Attributes:
      path: the file.
      model_name: the network they are for, by our name.
      layout: whose names the tensors have (see `convert`).
      preprocessing: what images have to be made into; None where nobody says.
      class_names: in the order of the logits; () where nobody says.
      kwargs: arguments that `create_model` needs for them; a user's own come after these.
      description: where they come from, in a few words.
      bgr: whether the file's first kernel wants blue first; `load_variables` flips it.
      input_shape: (height, width, channels) of images where variables have the shapes for another
        one than the network's own.
      tensors: of a file that had to be read already, as its layout is found by their names.
    """

    path: Path
    model_name: str
    layout: str
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    bgr: bool = False
    input_shape: tuple[int, ...] | None = None
    tensors: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False, compare=False)

    def need_preprocessing(self) -> Preprocessing:
        """What images have to be made into. Raises UserError where nobody says."""
        if self.preprocessing is None:
            raise UserError(f"{self.description} does not say what images are made into")
        return self.preprocessing


def from_pretrained(
    spec: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    *,
    model_name: str = "",
    preprocessing: Preprocessing | None = None,
    key: jax.Array | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any], Preprocessing]:
    """A network, its published variables and what images have to be made into for it.

    `spec` is one of
    - "resnet50.a1_in1k": names and tags of `flaxcnn list --pretrained`, those of timm, torchvision
      and Keras; with `model_name` the tag alone;
    - "hf://user/repo" or "hf://user/repo@revision": a repository with timm's config.json;
    - "https://...#sha256=...": a file, with `model_name`;
    - "PATH", "file:PATH" or "file:PATH,layout=torchvision": a file, with `model_name`, a `.fcz` of
      `flaxcnn compress`, which knows its network, or a folder with timm's config.json.

    With a `num_classes` that is not the weights' the head is new, from `key`, which a UserWarning
    says; None keeps the weights' own. With `in_channels` 1 the first kernel is summed over its
    input channels, with another number it is repeated and scaled (as timm does); mean and std are
    then averages. Images have red first and pixels in 0..1 whatever the file's own network takes.
    `kwargs` go to `create_model`; `preprocessing` replaces the weights'.

    Raises UserError for weights that are not found, damaged, or of another network: where padding,
    strides or epsilon differ, equal shapes are no proof, and the message has the right name.
    """
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    variables, located = load_variables(
        spec, model_name, key=key, in_channels=in_channels, **kwargs
    )
    preprocessing = preprocessing or located.need_preprocessing()
    return (
        create_model(located.model_name, **{**located.kwargs, **kwargs}),
        variables,
        preprocessing,
    )


def load_variables(
    spec: str | Located,
    model_name: str = "",
    *,
    key: jax.Array | None = None,
    in_channels: int | None = None,
    new_head: bool = False,
    **kwargs: Any,
) -> tuple[dict[str, Any], Located]:
    """The variables of `create_model(located.model_name, **{**located.kwargs, **kwargs})`.

    Arguments and errors as for `from_pretrained`. What is returned beside them is `locate(spec,
    model_name)` with `num_classes` among its `kwargs`, preprocessing for `in_channels`, and the
    names of the classes, if the head is the weights'. Weights without a head get a new one where
    `num_classes` says of how many classes, or with `new_head` of as many as the network has.
    """
    located = spec if isinstance(spec, Located) else locate(spec, model_name, **kwargs)
    tensors = read_tensors(located.path) if located.tensors is None else located.tensors
    name, layout = located.model_name, located.layout
    chosen = {**located.kwargs, **kwargs}
    if "num_classes" not in kwargs:
        chosen.pop("num_classes", None)
        count = count_classes(name, tensors, layout, input_shape=located.input_shape, **chosen)
        if not count and not new_head:
            raise UserError(f"{located.description} has no head: give num_classes for a new one")
        chosen["num_classes"] = count or variant(name).kwargs["num_classes"]
    variables = convert(name, tensors, layout, key=key, input_shape=located.input_shape, **chosen)
    variables, channels = _adapt_input(located, variables, in_channels, chosen)
    preprocessing = located.preprocessing
    if preprocessing is not None and channels:
        preprocessing = preprocessing.for_channels(channels)
    located = dataclasses.replace(
        located,
        preprocessing=preprocessing,
        class_names=_name_classes(located.class_names, chosen["num_classes"]),
        kwargs={**located.kwargs, "num_classes": chosen["num_classes"]},
        tensors=None,
    )
    return variables, located


def _name_classes(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The names of that many classes; TensorFlow's 1,001 of ImageNet have a background first."""
    if num_classes == len(names) + 1 == 1001:
        return ("background", *names)
    return names if num_classes == len(names) else ()


def locate(spec: str, model_name: str = "", **kwargs: Any) -> Located:
    """Finds weights, downloading them if they are not here yet; `spec` as for `from_pretrained`.

    `model_name` has to be the network that they are for, and is needed where a file alone does not
    say; so do `kwargs` of `create_model`. Raises UserError as `from_pretrained`.
    """
    model_name = ALIASES.get(model_name, model_name)
    if model_name:
        variant(model_name)  # a wrong name is said before anything is downloaded
    if spec.startswith("run:"):
        raise UserError(f"{spec}: a run's weights are read by configs and by flaxcnn.load(FOLDER)")
    if spec.startswith("hf://"):
        return _locate_repository(spec, model_name, kwargs)
    if re.match("https?://", spec):
        return _locate_url(spec, model_name, kwargs)
    path, _, layout = spec.removeprefix("file:").partition(",layout=")
    if spec.startswith("file:") or Path(path).exists():
        if Path(path).is_dir():
            return _locate_folder(Path(path), model_name, kwargs)
        if not Path(path).exists():
            raise UserError(f"{path}: no such file")
        if config := own_config(path):
            return dataclasses.replace(_read_repository(config, model_name, path), path=Path(path))
        return _locate_file(Path(path), model_name, layout, path, kwargs)
    return _locate_entry(spec, model_name)


def _locate_entry(spec: str, model_name: str) -> Located:
    """Of the catalogue: a tag, or a network and a tag."""
    entry = _find_entry(spec, model_name)
    _check_name(entry.full_name, entry.model, model_name)
    origin = list_origins(entry.model).get(entry.layout, Origin())
    return Located(
        hub.fetch(entry.source, entry.file, entry.sha256),
        entry.model,
        entry.layout,
        Preprocessing.from_config({"interpolation": "bilinear", **entry.preprocessing}),
        class_names(entry.classes) if entry.classes else (),
        {**origin.kwargs, **entry.kwargs},
        entry.full_name,
        reads_bgr(entry.preprocessing),
    )


def _find_entry(spec: str, model_name: str) -> catalogue.Entry:
    if not model_name:
        return catalogue.find_entry(spec)
    try:
        return catalogue.find_entry(f"{model_name}.{spec}")
    except UserError as error:
        try:
            return catalogue.find_entry(spec)
        except UserError:
            raise error from None


def _check_name(what: str, theirs: str, ours: str) -> None:
    if ours and theirs != ours:
        raise UserError(
            f"{what} has weights of {theirs}, and they load as {theirs} only, not {ours}"
        )


def _locate_repository(spec: str, model_name: str, kwargs: Mapping[str, Any]) -> Located:
    config = _read_config(hub.fetch(spec, "config.json"), spec)
    located = _read_repository(config, model_name, spec)
    try:
        path = hub.fetch(spec, _FILES[0])
    except UserError as error:
        try:
            path = hub.fetch(spec, _FILES[1])
        except UserError:
            raise error from None
    return _complete(dataclasses.replace(located, path=path), kwargs)


def _locate_folder(folder: Path, model_name: str, kwargs: Mapping[str, Any]) -> Located:
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has no config.json: name the file of the weights")
    config = _read_config(folder / "config.json", str(folder))
    if isinstance(config.get("model"), dict) and isinstance(config.get("data"), dict):
        raise UserError(
            f"{folder} is a run: flaxcnn.load({str(folder)!r}), in a config run:{folder}"
        )
    located = _read_repository(config, model_name, str(folder))
    path = next((folder / file for file in _FILES if (folder / file).exists()), None)
    if path is None:
        raise UserError(f"{folder} has no {' or '.join(_FILES)}")
    return _complete(dataclasses.replace(located, path=path), kwargs)


def _read_config(path: Path, where: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{where}: config.json holds no object")
    return config


def _read_repository(config: Mapping[str, Any], model_name: str, where: str) -> Located:
    """Of timm's config.json, as it is and as it was, and of `flaxcnn push`."""
    pushed = config.get("flaxcnn") or {}
    name = pushed.get("model") or _read_architecture(config, where)
    variant(name)
    _check_name(where, name, model_name)
    arguments = dict(config.get("model_args") or {})
    kwargs = {key: arguments[key] for key in arguments if key not in _IGNORED}
    if kwargs and not pushed:  # timm's
        raise UserError(
            f"{where}: config.json has model_args that are unknown: {', '.join(kwargs)}"
        )
    details = config.get("pretrained_cfg") or config
    labels = config.get("label_names") or details.get("label_names") or ()
    classes = config.get("num_classes") or details.get("num_classes")
    if not labels and classes in (None, 1000):
        labels = class_names("imagenet1k")
    preprocessing = Preprocessing.from_config(details)
    own_shape = (*preprocessing.image_size, preprocessing.channels)
    return Located(
        Path(),
        name,
        pushed.get("layout", ""),
        preprocessing,
        tuple(map(str, labels)),
        kwargs,
        where,
        reads_bgr(details),
        own_shape if pushed else None,
    )


def _read_architecture(config: Mapping[str, Any], where: str) -> str:
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise UserError(f"{where}: config.json has no architecture, as timm's repositories have")
    name = catalogue.model_of_timm(architecture)
    if not name:
        raise UserError(f"{where}: timm's {architecture} is not among the networks here")
    return name


def _complete(located: Located, kwargs: Mapping[str, Any]) -> Located:
    """With the layout, by the tensors' names unless it is said, and the arguments for it."""
    tensors, layout, own = None, located.layout, located.kwargs
    if not layout:
        tensors = read_tensors(located.path)
        layout = find_layout(located.model_name, tensors, **{**own, **kwargs})
        own = {**list_origins(located.model_name).get(layout, Origin()).kwargs, **own}
    return dataclasses.replace(located, layout=layout, kwargs=own, tensors=tensors)


def _locate_url(spec: str, model_name: str, kwargs: Mapping[str, Any]) -> Located:
    url, _, fragment = spec.partition("#")
    _need_name(url, model_name)
    layout = re.search(r"layout=(\w+)", fragment)
    said = re.search(r"(sha256|md5)=\w+", fragment)
    in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)  # as torch.hub's files are called
    sha256 = in_name[1] if in_name and not said else ""
    path = hub.fetch(f"{url}#{said[0]}" if said else url, sha256=sha256)
    return _locate_file(path, model_name, layout[1] if layout else "", url, kwargs)


def _locate_file(
    path: Path, model_name: str, layout: str, description: str, kwargs: Mapping[str, Any]
) -> Located:
    """A file that says nothing but its tensors' names: what is known is what its library does."""
    _need_name(description, model_name)
    tensors = None
    if not layout:
        tensors = read_tensors(path)
        layout = find_layout(model_name, tensors, **kwargs)
    try:
        origin = find_origin(model_name, layout)
    except UserError as error:
        raise UserError(f"{description}: {error}") from error
    pixels = describe_pixels(model_name, origin) if origin else {}
    imagenet = bool(origin) and not model_name.startswith("cifar")
    return Located(
        path,
        model_name,
        layout,
        Preprocessing.from_config(pixels) if origin else None,
        class_names("imagenet1k") if imagenet else (),
        origin.kwargs if origin else {},
        description,
        reads_bgr(pixels),
        tensors=tensors,
    )


def _need_name(what: str, model_name: str) -> None:
    if not model_name:
        raise UserError(f"{what} does not say which network it is for: give its name (model_name)")


def _adapt_input(
    located: Located,
    variables: dict[str, Any],
    in_channels: int | None,
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, Any], int | None]:
    """The first kernels for RGB and `in_channels`, and their number of input channels if asked."""
    if not located.bgr and in_channels is None:
        return variables, None
    height, width, channels = located.input_shape or variant(located.model_name).input_shape
    model = create_model(located.model_name, **kwargs)
    more = trace_shapes(model, (height, width, channels + 1))
    flat: dict[Any, Any] = traverse_util.flatten_dict(variables)  # pyright: ignore
    for path in [path for path, leaf in flat.items() if leaf.shape != more[path]]:
        if flat[path].ndim != 4:
            raise UserError(f"{located.model_name}: {'/'.join(path)} cannot take other channels")
        kernel = flat[path][:, :, ::-1] if located.bgr else flat[path]
        flat[path] = np.ascontiguousarray(adapt_kernel(kernel, in_channels or channels))
    return traverse_util.unflatten_dict(flat), in_channels or channels


def adapt_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel [h, w, I, O] for images of another number of channels, [h, w, channels, O].

    For one channel it is summed over its own; for others these are repeated and scaled by I /
    channels, so that equal channels give the same (timm's `adapt_input_conv`).
    """
    before = kernel.shape[2]
    if channels == before:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    if channels < 1:
        raise UserError(f"in_channels must be at least 1, got {channels}")
    repeated = np.tile(kernel, (1, 1, math.ceil(channels / before), 1))[:, :, :channels]
    return repeated * np.float32(before / channels)
