"""Weights as safetensors, by our names or another library's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from flaxcnn.errors import UserError
from flaxcnn.weights.convert import export
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
    known = ["flaxcnn", *(x for x in LAYOUTS if x in list_origins(name))]
    if layout not in known:
        raise UserError(f"{layout} has no {name}: there is layout {', '.join(known)}")
    shape = None if image_shape is None else tuple(image_shape)
    tensors = export(name, variables, layout, input_shape=shape, **kwargs)
    # "format" is what Hugging Face's libraries ask for.
    content = save(tensors, metadata={"format": "pt", "model": name, "layout": layout})
    Path(path).write_bytes(content)
