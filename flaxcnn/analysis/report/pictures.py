"""Arrays to the small image files of a report."""

import io
import math

import matplotlib
import numpy as np
from PIL import Image

from flaxcnn.analysis.report.contents import Picture

_PHOTO = 64  # pixels to a side from which JPEG is smaller than PNG


def encode(pixels: np.ndarray, largest: int = 160) -> Picture:
    """An image uint8 [H, W, 1 or 3], brought to at most `largest` pixels to a side."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    if max(image.size) > largest:
        scale = largest / max(image.size)
        size = tuple(max(1, round(scale * side)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
    file, photo = io.BytesIO(), max(image.size) > _PHOTO
    if photo:
        image.save(file, "JPEG", quality=82)
    else:
        image.save(file, "PNG", optimize=True)
    return Picture(file.getvalue(), "image/jpeg" if photo else "image/png", *image.size)


def colour(values: np.ndarray, name: str) -> np.ndarray:
    """Values in 0..1 [..., H, W] as colours of a matplotlib map, uint8 [..., H, W, 3]."""
    return matplotlib.colormaps[name](np.asarray(values).clip(0, 1), bytes=True)[..., :3]


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heatmap in 0..1 [H, W] over an image uint8 [H, W, C] in grey."""
    grey = pixels.mean(-1, keepdims=True)
    return (0.45 * grey + 0.55 * colour(heat, "inferno")).astype(np.uint8)


def mosaic(pictures: np.ndarray, columns: int = 0) -> np.ndarray:
    """Pictures uint8 [K, H, W, C] in rows, with white between them."""
    count, height, width, channels = pictures.shape
    columns = columns or math.ceil(math.sqrt(1.6 * count))
    gap, rows = max(1, round(0.04 * max(height, width))), -(-count // columns)
    size = rows * (height + gap) - gap, columns * (width + gap) - gap, channels
    canvas = np.full(size, 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = i // columns * (height + gap), i % columns * (width + gap)
        canvas[row : row + height, column : column + width] = picture
    return canvas
