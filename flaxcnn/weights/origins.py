"""Whose files a network takes: equal shapes are no proof, as padding or epsilon may differ."""

import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxcnn.errors import UserError
from flaxcnn.models._registry import ALIASES, VARIANTS, variant
from flaxcnn.weights.preprocessing import KERAS_MODES


class Origin(NamedTuple):
    """What is known of files in one layout without being told.

    `pixels` is what their library takes images to: of KERAS_MODES, or "bvlc", the rounded means of
    Caffe's reference networks. `kwargs` are the network's where a name here has other values.
    """

    pixels: str = "torch"
    kwargs: Mapping[str, Any] = {}


_TORCH = {"torchvision": Origin(), "timm": Origin()}
_SLIM = {"keras": Origin("tf"), "tflite": Origin("tf")}
_INCEPTION = {"torchvision": Origin("tf"), "timm": Origin("tf")}
_KERAS_EPSILON = {"epsilon": 1.001e-5}
# By patterns of names, of which the first that matches counts, the layouts of the files that were
# made for the very network. The tests compare each network with that library.
ORIGINS: Mapping[str, Mapping[str, Origin]] = {
    "cifar_resnet*": {"torchvision": Origin()},
    "resnet34_[ac]": {},
    "resnet*_v1": {"keras": Origin("caffe", _KERAS_EPSILON)},
    "resnet*v2": {"keras": Origin("tf")},
    "resnetv2_*": {"timm": Origin("tf")},
    "resne[tx]*": _TORCH,
    "s*bn_inception": {"caffe": Origin("bvlc")},
    "bn_inception": {"caffe": Origin("bvlc")},
    "se[nr]*": {"timm": Origin()},
    "mobilenet_v[12]_*": _SLIM,
    "mobilenetv1_*": {"timm": Origin("tf")},
    "mobilenet_v2": _TORCH,
    "mobilenetv2_*": {"timm": Origin()},
    "densenet*": {**_TORCH, "keras": Origin("torch", _KERAS_EPSILON)},
    "vgg*": {**_TORCH, "keras": Origin("caffe"), "caffe": Origin("caffe")},
    "alexnet": {"torchvision": Origin()},
    "alexnet_*": {"caffe": Origin("bvlc")},
    "googlenet_[al]*": {"caffe": Origin("bvlc")},
    "googlenet*": {"torchvision": Origin("tf")},
    "inception_v3_keras": {"keras": Origin("tf")},
    "inception_v3*": _INCEPTION,
    "inception_v4": {"timm": Origin("tf")},
    "inception_resnet_v2": {"timm": Origin("tf"), "keras": Origin("tf", {"norm_scale": False})},
    "nasnet_a_*_slim": {},
    "nasnet_a_*": {"keras": Origin("tf")},
    "nasnetalarge": {"timm": Origin("tf")},
    "xception": {"keras": Origin("tf")},
    "squeezenet1_0": {"torchvision": Origin()},
    "squeezenet1_0_caffe": {"caffe": Origin("bvlc")},
    "squeezenet1_1": {"torchvision": Origin(), "caffe": Origin("bvlc")},
    "darknet53": {"timm": Origin("torch", {"negative_slope": 0.01})},
}


def list_origins(name: str) -> Mapping[str, Origin]:
    """By layout what is known of files for the network of that name; {} for nothing."""
    name = ALIASES.get(name, name)
    return next((known for models, known in ORIGINS.items() if fnmatch.fnmatch(name, models)), {})


def find_origin(name: str, layout: str) -> Origin | None:
    """What is known of files in `layout` for the network, None for nothing.

    Raises UserError, with the network's own name, if files in this layout are for another one of
    the same shapes.
    """
    origins = list_origins(name)
    if not origins or layout in origins or layout == "flaxcnn":
        return origins.get(layout)
    ours = variant(name)
    same = [
        other
        for other, known in VARIANTS.items()
        if (known.network, known.params) == (ours.network, ours.params)
        and layout in list_origins(other)
    ]
    same.sort(key=lambda other: VARIANTS[other].input_shape != ours.input_shape)
    hint = f": they are {same[0]}'s" if same else f": it takes those in {', '.join(origins)}"
    raise UserError(
        f"weights in layout {layout} have the shapes of {name} and are not for it, as padding, "
        f"strides or epsilon differ{hint}"
    )


def describe_pixels(name: str, origin: Origin) -> dict[str, Any]:
    """In the words of timm's `pretrained_cfg` what images become, as far as the library says."""
    height, width, channels = variant(name).input_shape
    size = {"input_size": (channels, height, width), "interpolation": "bilinear"}
    if origin.pixels == "bvlc":  # images are stretched to 256x256, and the centre is seen
        mode = {**KERAS_MODES["caffe"], "mean": (104, 117, 123)}
        return {**mode, **size, "crop_mode": "squash", "resize_size": 256}
    crop = 0.875 if min(height, width) >= 96 else 1.0
    return {**KERAS_MODES[origin.pixels], **size, "crop_pct": crop}
