"""Weights as safetensors, by our names or another library's, and as Keras' .h5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from flaxcnn.errors import UserError
from flaxcnn.weights.convert import export
from flaxcnn.weights.formats import keras
from flaxcnn.weights.origins import list_origins

LAYOUTS = ("flaxcnn", "torchvision", "timm")


def export_safetensors(
    path: str | Path,
    name: str,
    variables: Mapping[str, Any],
    layout: str = "flaxcnn",
    *,
    image_shape: Sequence[int] | None = None,
    **kwargs: Any,
) -> None:
    """Writes variables of the named network, made with `kwargs`, in a library's names and layout.

    "torchvision" and "timm" are for `load_state_dict` of the network there, with the number of
    classes of these variables; "flaxcnn" has paths such as "params/stem_conv/kernel", and our
    shapes. `image_shape` is (height, width, channels), unless it is the network's own.

    Raises UserError if the library does not have the network, and as `flaxcnn.weights.export`.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}, and must be {', '.join(LAYOUTS)}")
    tensors = _name_tensors(name, variables, layout, image_shape, kwargs)
    # "format" is what Hugging Face's libraries ask for.
    content = save(tensors, metadata={"format": "pt", "model": name, "layout": layout})
    Path(path).write_bytes(content)


def export_keras(
    path: str | Path,
    name: str,
    variables: Mapping[str, Any],
    *,
    image_shape: Sequence[int] | None = None,
    **kwargs: Any,
) -> None:
    """Writes variables of a network of `keras.applications`; arguments as of `export_safetensors`.

    For `load_weights(path, by_name=True)` of the model there. Raises UserError if Keras does not
    have the network, and if h5py is not installed.
    """
    keras.write(Path(path), _name_tensors(name, variables, "keras", image_shape, kwargs))


def _name_tensors(
    name: str,
    variables: Mapping[str, Any],
    layout: str,
    image_shape: Sequence[int] | None,
    kwargs: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    if layout != "flaxcnn" and layout not in list_origins(name):
        known = ", ".join(["flaxcnn", *(x for x in LAYOUTS if x in list_origins(name))])
        raise UserError(f"{layout} has no {name}: there is layout {known}")
    shape = None if image_shape is None else tuple(image_shape)
    return export(name, variables, layout, input_shape=shape, **kwargs)
