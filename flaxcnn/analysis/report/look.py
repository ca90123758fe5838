"""What a network makes of images: attributions, filters and feature maps, as small pictures."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from flaxcnn.analysis.activations import activations, first_filters, layer_shapes
from flaxcnn.analysis.attribution import grad_cam, heatmap, integrated_gradients
from flaxcnn.analysis.plots import stretch
from flaxcnn.analysis.report.contents import Named, Picture
from flaxcnn.analysis.report.pictures import colour, encode, mosaic, overlay
from flaxcnn.errors import UserError

_TOGETHER, _VALUES = 16, 2**21  # images of one call, and their values, at most
_FILTERS, _MAPS, _LAYERS = 64, 16, 4  # drawn
_STEPS = 8  # of integrated gradients


def draw_mistakes(
    model: nn.Module, variables: Any, pixels: np.ndarray, images: np.ndarray, classes: np.ndarray
) -> list[dict[str, Picture]]:
    """Of each image itself, and what speaks for the class it was taken for: two attributions.

    `pixels` are uint8 [N, H, W, C], `images` what the network takes; `classes` below 0 (none) are
    explained as the class that the network says. Grad-CAM is left out where there is none to draw:
    without maps, or of a single logit, whose negative side it does not show.
    """
    if not len(images):
        return []
    logits = activations(model, variables, images[:1], ["output"])["output"].shape[-1]
    classes = np.clip(classes, 0, logits - 1).astype(np.int32)
    drawn = [{"image": encode(image)} for image in pixels]
    heats = heatmap(_chunked(integrated_gradients, model, variables, images, classes, steps=_STEPS))
    for of_image, heat in zip(drawn, heats, strict=True):
        of_image["integrated gradients"] = encode(colour(heat, "inferno"))
    if logits == 1:
        return drawn
    try:
        maps = _chunked(grad_cam, model, variables, images, classes)
    except UserError:
        return drawn
    for of_image, image, heat in zip(drawn, pixels, heatmap(maps), strict=True):
        of_image["Grad-CAM"] = encode(overlay(image, heat))
    return drawn


def _chunked(
    method: Any, model: nn.Module, variables: Any, images: Any, classes: Any, **options: Any
) -> Any:
    """The method's attributions, in calls of one size, the last filled up with its last image.

    The size does not depend on the number of images: the next run's program is this one's.
    """
    size = max(1, min(_TOGETHER, _VALUES // images[0].size))
    found = []
    for start in range(0, len(images), size):
        chosen = np.minimum(np.arange(start, start + size), len(images) - 1)
        found.append(
            np.asarray(method(model, variables, images[chosen], classes[chosen], **options))
        )
    return np.concatenate(found)[: len(images)]


def draw_filters(model: nn.Module, variables: Any, image_shape: Sequence[int]) -> list[Named]:
    """The filters of the first convolution, each scaled by itself; [] of a network without one."""
    try:
        name, kernel = first_filters(model, variables, image_shape)
    except UserError:
        return []
    filters = np.moveaxis(kernel, -1, 0)[:_FILTERS]
    shown = stretch(filters if filters.shape[-1] == 3 else filters[..., :1])
    pictures = (255 * shown).round().astype(np.uint8)
    text = "x".join(map(str, kernel.shape))
    return [Named(name, encode(mosaic(pictures), 480), text)]


def draw_features(model: nn.Module, variables: Any, image: np.ndarray) -> list[Named]:
    """Maps of up to four convolutions from the first to the last, of what the network takes."""
    parameters: dict[str, Any] = traverse_util.flatten_dict(variables["params"], sep="/")
    names = [
        name
        for name, shape in layer_shapes(model, variables, image.shape).items()
        if len(shape) == 3 and np.ndim(parameters.get(f"{name}/kernel", 0)) == 4
    ]
    places = np.linspace(0, len(names) - 1, min(_LAYERS, len(names))).round().astype(int)
    chosen = [names[place] for place in dict.fromkeys(places.tolist())]
    if not chosen:
        return []
    drawn = []
    for name, maps in activations(model, variables, image[None], chosen).items():
        shown = np.moveaxis(np.asarray(maps[0], np.float32), -1, 0)[:_MAPS]
        low, high = np.percentile(shown, (0.5, 99.5))
        scaled = (shown - low) / (high - low if high > low else 1)
        picture = encode(mosaic(colour(scaled, "viridis")), 360)
        height, width, channels = maps.shape[1:]
        text = f"{height}x{width}, {len(shown)} of {channels} maps"
        drawn.append(Named(name, picture, text))
    return drawn
