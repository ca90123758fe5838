"""Pictures of masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.data.targets import IGNORED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_OVERLAY = 0.6  # share of a class's colour over the image


def class_colors(count: int) -> np.ndarray:
    """Colours of classes, uint8 [count, 3]: those of PASCAL VOC's palette, but for its black."""
    colors = np.zeros((count, 3), np.uint8)
    for index in range(count):
        left, shift = index + 1, 7
        while left:
            for channel in range(3):
                colors[index, channel] |= ((left >> channel) & 1) << shift
            left, shift = left >> 3, shift - 1
    return colors


def color_classes(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, C] under the colours of `classes` [H, W]; 255 stays bare."""
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    colors = class_colors(256)[classes]
    mixed = image * (1 - _OVERLAY) + colors * _OVERLAY
    return np.where((classes == IGNORED)[..., None], image, mixed).round().astype(np.uint8)


def to_palette(classes: np.ndarray) -> "Image":
    """Numbers of classes uint8 [H, W] as an image whose palette has their colours."""
    from PIL.Image import fromarray

    image = fromarray(classes).convert("P")
    image.putpalette(class_colors(256).tobytes())
    return image


def draw_masks(
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    *,
    titles: Sequence[str],
) -> "Figure":
    """Rows of an image, its mask and the predicted one, [n, H, W, ...], and a legend."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, (height, width) = len(images), true.shape[1:]
    row = 2.6 * height / width
    figure = Figure(figsize=(8, (row + 0.3) * count + 0.7), layout="constrained")
    axes = figure.subplots(count, 3, squeeze=False)
    for line, image, mask, guess, title in zip(axes, images, true, predicted, titles, strict=True):
        pictures = (image, color_classes(image, mask), color_classes(image, guess))
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.squeeze(), cmap="gray" if picture.shape[-1] == 1 else None)
            axis.set_axis_off()
        line[0].set_title(title, fontsize=8, loc="left")
    for axis, title in zip(axes[0][1:], ("true classes", "predicted"), strict=True):
        axis.set_title(title, fontsize=8)
    seen = np.union1d(np.unique(true[true != IGNORED]), np.unique(predicted))
    colors = class_colors(len(class_names)) / 255
    handles = [Patch(color=tuple(colors[i]), label=class_names[i]) for i in seen[:24]]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    return figure
