"""Pictures of images and of what networks make of them: arrays to matplotlib figures.

Images to look at are uint8, or floats in 0..1, [H, W, C] with one or three channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcnn.analysis.attribution import heatmap
from flaxcnn.analysis.deconvnet import Patches
from flaxcnn.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST_GRID = 40  # pixels to a side of which the numbers can still be read
_SMOOTH = ("grad_cam", "occlusion")  # of regions: drawn over the image


def to_pixels(images: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """Normalised images back to pixels in 0..1, cut there: the inverse of (x - mean) / std."""
    scaled = np.asarray(images, np.float32) * np.asarray(std) + np.asarray(mean)
    return scaled.clip(0, 1).astype(np.float32)


def stretch(values: np.ndarray) -> np.ndarray:
    """Signed values [..., H, W, C] to 0..1 for the eye: 0 is middle grey, each array by itself."""
    values = np.asarray(values, np.float32)
    largest = np.abs(values).max((-3, -2, -1), keepdims=True)
    return 0.5 + 0.5 * values / np.where(largest > 0, largest, 1)


def draw_samples(images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 8) -> Any:
    """Draws images in rows, with their titles above. Returns a Figure."""
    if not len(images):
        raise UserError("there are no images to draw")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    aspect = float(np.clip(images[0].shape[0] / images[0].shape[1], 0.3, 3))
    cell = max(1.4, 7.0 / columns) if columns < 5 else 1.4
    figure = _figure(cell * columns, (cell * aspect + (0.3 if titles else 0.05)) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(panels):
        axes.set_axis_off()
        if i < len(images):
            _show(axes, images[i])
            if titles:
                _title(axes, titles[i], 16 if columns > 4 else 28)
    return figure


def draw_channels(image: np.ndarray, names: Sequence[str] = ()) -> "Figure":
    """Draws an image and beside it each of its channels as grey values."""
    channels = image.shape[-1]
    names = names or {1: ("grey",), 3: ("red", "green", "blue")}.get(channels, ())
    names = names or [f"channel {i}" for i in range(channels)]
    pictures = [image[..., i : i + 1] for i in range(channels)]
    shown = [image] if channels == 3 else []
    return draw_samples([*shown, *pictures], [*(["image"] * len(shown)), *names], 4)


def draw_pixels(image: np.ndarray) -> "Figure":
    """Draws an image with the value of every pixel written in it, a grid for each channel.

    Raises UserError for more than 40 pixels to a side: `image[a:b, c:d]` chooses some.
    """
    height, width, channels = image.shape
    if max(height, width) > _LARGEST_GRID:
        raise UserError(
            f"numbers of {height}x{width} pixels cannot be read: choose at most "
            f"{_LARGEST_GRID}x{_LARGEST_GRID} of them"
        )
    whole = np.issubdtype(image.dtype, np.integer)
    top = 255 if whole else 1
    cell = 0.34 if whole else 0.42
    figure = _figure(channels * width * cell + 0.4, height * cell + 0.5)
    names = ("red", "green", "blue") if channels == 3 else ("",) * channels
    panels = figure.subplots(1, channels, squeeze=False)[0]
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        values = image[..., index]
        axes.imshow(values, cmap="gray", vmin=0, vmax=top)
        for (row, column), value in np.ndenumerate(values):
            text = str(value) if whole else f"{value:.2f}".lstrip("0") or "0"
            color = "black" if value > 0.55 * top else "white"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7.5)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=10)
    return figure


def draw_filtered(
    image: np.ndarray, results: Mapping[str, Mapping[str, np.ndarray]], scale: float = 255.0
) -> "Figure":
    """Draws an image and what kernels make of it, `results[kernel][whose]`, a column per kernel.

    With several makers (flaxcnn, OpenCV), each has a row; the title has the largest difference
    between the first two. Results [H, W, C] that go below 0, edges, are drawn as their size.
    """
    makers = list(next(iter(results.values())))
    aspect = image.shape[0] / image.shape[1]
    columns = len(results) + 1
    figure = _figure(2.2 * columns, (2.2 * aspect + 0.35) * len(makers))
    panels = figure.subplots(len(makers), columns, squeeze=False)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row in panels[1:]:
        row[0].set_axis_off()
    _show(panels[0, 0], image)
    _title(panels[0, 0], "image")
    for column, (name, by) in enumerate(results.items(), 1):
        for row, maker in enumerate(makers):
            axes = panels[row, column]
            values = by[maker] / scale
            _show(axes, np.abs(values).clip(0, 1) if values.min() < -0.5 else values.clip(0, 1))
            if column == 1 and len(makers) > 1:
                axes.set_ylabel(maker, fontsize=10)
        _title(panels[0, column], name)
        if len(makers) > 1:
            first, second = (by[maker] for maker in makers[:2])
            text = f"largest difference {np.abs(first - second).max():.1g}"
            panels[1, column].set_xlabel(text, fontsize=8)
    return figure


def draw_filters(kernel: np.ndarray, count: int = 96, title: str = "") -> "Figure":
    """Draws the filters of a kernel [h, w, C, F], each scaled by itself; 0 is middle grey.

    In colour where there are three input channels, else of each filter the first channel.
    """
    filters = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)[:count]
    pictures = stretch(filters if filters.shape[-1] == 3 else filters[..., :1])
    columns = max(4, math.ceil(math.sqrt(1.6 * len(pictures))))
    return _mosaic(pictures, columns, title, "gray", 0.0, 1.0)


def draw_features(
    maps: np.ndarray, count: int = 64, title: str = "", image: np.ndarray | None = None
) -> "Figure":
    """Draws the first `count` channels of an image's maps [H, W, C] on one colour scale.

    The scale goes to the 99.5th percentile of all values drawn. `image` is drawn first.
    """
    pictures = np.moveaxis(np.asarray(maps, np.float32), -1, 0)[:count, :, :, None]
    columns = max(4, math.ceil(math.sqrt(1.4 * len(pictures))))
    low, high = min(0.0, float(np.percentile(pictures, 0.5))), float(np.percentile(pictures, 99.5))
    return _mosaic(pictures, columns, title, "viridis", low, high or 1.0, image, scale=True)


def draw_attributions(
    images: np.ndarray,
    attributions: Mapping[str, np.ndarray],
    titles: Sequence[str] = (),
) -> "Figure":
    """Draws a row per image [N, H, W, C] and a column per method.

    Of pixels, attributions are drawn by their size, dark to bright; Grad-CAM and occlusion, which
    are of regions, over the image in grey, from blue (against the class) to red (for it).
    """
    rows, columns = len(images), len(attributions) + 1
    aspect = images.shape[1] / images.shape[2]
    figure = _figure(1.75 * columns, (1.75 * aspect + 0.12) * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, image in enumerate(images):
        _show(panels[row, 0], image)
        if titles:
            panels[row, 0].set_ylabel(titles[row][:24], fontsize=9, parse_math=False)
        grey = _unit(image).mean(-1)
        for column, (name, values) in enumerate(attributions.items(), 1):
            axes, regional = panels[row, column], name in _SMOOTH
            values = heatmap(values[row : row + 1], absolute=not regional)[0]
            if regional:
                axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
                axes.imshow(
                    values, cmap="RdBu_r", vmin=-1, vmax=1, alpha=0.25 + 0.5 * np.abs(values)
                )
            else:
                axes.imshow(values, cmap="inferno", vmin=0, vmax=1)
    for axes, name in zip(panels[0], ["image", *attributions], strict=True):
        axes.set_title(name.replace("_", " ").replace("guided back", "guided\nback"), fontsize=9)
    return figure


def draw_patches(
    patches: Sequence[Patches], mean: Any, std: Any, titles: Sequence[str]
) -> "Figure":
    """Draws the patches of units, and beside them what the deconvnet reconstructs, 3x3 each.

    `mean` and `std` are those that the images were normalised by.
    """
    columns = min(2, len(patches))
    rows = -(-len(patches) // columns)
    figure = _figure(6.2 * columns, 3.3 * rows)
    outer = figure.subfigures(rows, columns, squeeze=False).ravel()
    for cell, found, title in zip(outer, patches, titles, strict=False):
        cell.suptitle(title, fontsize=10, parse_math=False)
        halves = cell.subfigures(1, 2)
        shown = (to_pixels(found.patches, mean, std), stretch(found.reconstructions))
        for half, pictures in zip(halves, shown, strict=True):
            side = math.ceil(math.sqrt(len(pictures)))
            for i, axes in enumerate(half.subplots(side, side, squeeze=False).ravel()):
                axes.set_axis_off()
                if i < len(pictures):
                    _show(axes, pictures[i])
    return figure


def _mosaic(
    pictures: np.ndarray,
    columns: int,
    title: str,
    cmap: str,
    low: float,
    high: float,
    image: np.ndarray | None = None,
    scale: bool = False,
) -> "Figure":
    """Pictures of one size in rows on one pair of axes, the image left of them, a scale right."""
    count, height, width, channels = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = max(1, round(0.06 * min(height, width)))
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.nan)
    for i, picture in enumerate(pictures):
        row, column = i // columns * (height + gap), i % columns * (width + gap)
        canvas[row : row + height, column : column + width] = picture
    wide = 7.0
    tall = float(np.clip(wide * canvas.shape[0] / canvas.shape[1], 1.0, 12.0))
    side = 0.0 if image is None else 2.4
    figure = _figure(wide + side + (0.7 if scale else 0), tall + (0.3 if title else 0))
    if image is None:
        axes = figure.subplots()
    else:
        left, axes = figure.subplots(1, 2, width_ratios=(side, wide))
        _show(left, image)
        left.set_axis_off()
    if channels == 3:
        axes.imshow(np.nan_to_num(canvas, nan=1.0), interpolation="nearest")
    else:
        drawn = axes.imshow(canvas[..., 0], cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        if scale:
            figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02).ax.tick_params(labelsize=8)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def _figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that no window system knows about."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=120, layout="constrained")


def _unit(image: np.ndarray) -> np.ndarray:
    """The image in 0..1."""
    return image / 255 if np.issubdtype(image.dtype, np.integer) else np.asarray(image)


def _show(axes: "Axes", image: np.ndarray) -> None:
    pixels = _unit(image).clip(0, 1)
    axes.imshow(pixels if image.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _title(axes: "Axes", text: str, limit: int = 24) -> None:
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    axes.set_title(short, fontsize=9, parse_math=False)
