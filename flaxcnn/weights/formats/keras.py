"""Keras' .h5 files: a group for each layer, which lists its weights in `weight_names`.

As `save_weights` of Keras 1 and 2 writes them, and `model.save("x.h5")` of all. Names become
"layer/leaf" as Keras 3 has them: block1_conv1/block1_conv1_W_1:0 is block1_conv1/kernel.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.errors import UserError

Array = np.ndarray

MAX_DEPTH = 16  # of groups; NASNet has 5
MAX_EXPANSION = 100  # of compressed arrays
# Keras 1's names of leaves.
_OLD_LEAVES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # it was a variance
}
_LEAVES = "kernel|bias|gamma|beta|moving_mean|moving_variance|depthwise_kernel|pointwise_kernel"
_LEAF = re.compile(rf"(?:.*_)??({_LEAVES}|{'|'.join(_OLD_LEAVES)})(?:_\d+)?(?::0)?")
_ORDER = ("depthwise_kernel", "pointwise_kernel", "kernel", "bias")
_ORDER += ("gamma", "beta", "moving_mean", "moving_variance")
# Layers that nobody named are numbered through, from where the session was; Keras 1's names.
_NUMBERED = re.compile(r"(conv2d|convolution2d|batch_?normalization)(?:_(\d+))?")
_OLD_KINDS = {"convolution2d": "conv2d", "batchnormalization": "batch_normalization"}


def read(path: Path) -> dict[str, Array]:
    """Reads a file's weights. Raises UserError for links, and where h5py is missing."""
    h5py = _import_h5py()
    with h5py.File(path, "r") as file:
        root: Any = _get(file, "model_weights", set()) if "model_weights" in file else file
        if "layers" in file or "_layer_checkpoint_dependencies" in file:
            raise UserError(
                "it is a .weights.h5 of Keras 3, which has no names of layers: save it by "
                "model.save('x.h5')"
            )
        layers: dict[str, dict[str, Array]] = {}
        _collect(root, "", None, path.stat().st_size, set(), layers)
    if not layers:
        raise UserError("it is an HDF5 file, and not one that Keras has written")
    return _name_tensors(layers)


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Writes arrays named "layer/leaf" for `model.load_weights(path, by_name=True)` of Keras.

    Raises UserError where h5py is missing.
    """
    h5py, layers = _import_h5py(), dict[str, list[str]]()
    for name in tensors:
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array(list(layers), "S")
        for layer, names in layers.items():
            group = file.create_group(layer)
            # Keras takes them by their order.
            names = sorted(names, key=lambda name: _ORDER.index(name.rpartition("/")[2]))
            group.attrs["weight_names"] = np.array([f"{name}:0" for name in names], "S")
            for name in names:
                group.create_dataset(f"{name}:0", data=tensors[name])


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError(
            "Keras' files need h5py, which is not installed: pip install 'flaxcnn[keras]'"
        ) from None
    return h5py


def _get(group: Any, name: str, seen: set[int]) -> Any:
    """A member of a group; what lies elsewhere, or is reached twice, is refused."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise UserError(f"its {name[:100]!r} is a link to elsewhere")
    member = group[name]
    address = h5py.h5o.get_info(member.id).addr  # pyright: ignore[reportAttributeAccessIssue]
    if address in seen:
        raise UserError(f"its {name[:100]!r} is the same as another")
    seen.add(address)
    return member


def _collect(
    group: Any,
    path: str,
    layer: dict[str, Array] | None,
    size: int,
    seen: set[int],
    layers: dict[str, dict[str, Array]],
) -> None:
    """Adds to `layers` the arrays in a group at `path`, which is in `layer` or in none.

    A layer is a group that lists its weights; its name may have slashes. `size` is the file's.
    """
    import h5py

    if path.count("/") > MAX_DEPTH:
        raise UserError(f"it has groups more than {MAX_DEPTH} deep")
    for name in group:
        member = _get(group, name, seen)
        inner = f"{path}/{name}" if path else name
        if isinstance(member, h5py.Dataset) and layer is not None:
            layer[inner] = _read_array(member, size)
        elif isinstance(member, h5py.Group):
            within = layer
            if layer is None and any(key.startswith("weight_names") for key in member.attrs):
                within = layers[inner] = {}
            _collect(member, inner, within, size, seen, layers)


def _read_array(dataset: Any, size: int) -> Array:
    name = dataset.name[:100]
    if dataset.is_virtual or dataset.external:
        raise UserError(f"its {name!r} lies in another file")
    if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8 or dataset.shape is None:
        raise UserError(f"its {name!r} holds {dataset.dtype.kind!r}, and not numbers")
    stored = min(dataset.id.get_storage_size(), size)
    if math.prod(dataset.shape) * dataset.dtype.itemsize > MAX_EXPANSION * stored:
        raise UserError(f"its {name!r} says that it is much larger than what is stored of it")
    return np.asarray(dataset[()])


def _name_tensors(layers: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """The arrays by "layer/leaf"; those of a network within a network by its layers."""
    tensors: dict[str, Array] = {}
    for group, paths in layers.items():
        arrays = {path.removeprefix(f"{group}/"): array for path, array in paths.items()}
        owners = {name.rpartition("/")[0] for name in arrays}
        for name, array in arrays.items():
            owner, _, last = name.rpartition("/")
            match = _LEAF.fullmatch(last)
            leaf = match[1] if match else last
            layer = owner if len(owners) > 1 or "/" in owner else group
            full = f"{layer}/{_OLD_LEAVES.get(leaf, leaf)}"
            if full in tensors:
                raise UserError(f"it has {full[:100]!r} twice")
            tensors[full] = array
    return _renumber(tensors)


def _renumber(tensors: dict[str, Array]) -> dict[str, Array]:
    """Numbers layers that have a number for a name as a new session does: conv2d, conv2d_1, ..."""
    numbers: dict[str, dict[str, int]] = {}
    for name in tensors:
        layer = name.rpartition("/")[0]
        match = _NUMBERED.fullmatch(layer)
        if match:
            kind = _OLD_KINDS.get(match[1], match[1])
            numbers.setdefault(kind, {})[layer] = int(match[2] or 0)
    renamed = {}
    for kind, found in numbers.items():
        for i, layer in enumerate(sorted(found, key=lambda layer: found[layer])):
            renamed[layer] = f"{kind}_{i}" if i else kind
    result = {}
    for name, array in tensors.items():
        layer, _, leaf = name.rpartition("/")
        result[f"{renamed.get(layer, layer)}/{leaf}"] = array
    return result
