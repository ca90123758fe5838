"""Image files to arrays: strict decoding, then one size and one number of channels for all."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flaxcnn.errors import UserError

FILE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_EXIF_ORIENTATION = 0x0112


class ImageFormat(NamedTuple):
    """What `fit_image` makes of an image; the fields are the config's, in its words."""

    size: tuple[int, ...]  # (height, width), or () to keep an image's own
    resize: str  # "crop", "stretch" or "pad"
    channels: int  # 1 grey, 3 RGB, 0 as in the image


def read_image(path: str | Path, size: tuple[int, ...], resize: str, channels: int) -> np.ndarray:
    """A JPEG, PNG, WebP or BMP file as uint8 [H, W, C], by the rules of `fit_image`.

    The orientation noted by a camera (EXIF) is applied, 16-bit samples keep their high byte, and
    transparent pixels are shown on white. Raises UserError naming the file if it cannot be opened
    or is damaged: a file that ends too early is, even where a lenient decoder would fill it up.
    """
    try:
        with Image.open(path, formats=FILE_FORMATS) as image:
            pixels = _to_pixels(image)  # loads it; to Pillow truncated data is an error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise _explain(path, error) from error
    return fit_image(pixels, size, resize, channels)


def probe_image(path: str | Path) -> tuple[int, int, int]:
    """(height, width, channels) that `read_image` gives a file of its own size, from its header.

    Raises UserError naming the file if there is no valid header.
    """
    try:
        with Image.open(path, formats=FILE_FORMATS) as image:
            width, height = image.size
            if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:  # on its side
                width, height = height, width
            return height, width, 1 if _is_grey(image) else 3
    except Exception as error:  # as above
        raise _explain(path, error) from error


def fit_image(image: np.ndarray, size: tuple[int, ...], resize: str, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> uint8 [height, width, channels].

    With `size` (height, width), "crop" scales the shorter side to size and cuts the centre out,
    "stretch" ignores the proportions, "pad" scales the longer side and adds black borders.
    Shrinking averages areas, enlarging interpolates linearly. Grey is Rec. 601 luma.
    """
    if channels == 1 and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif channels == 3 and image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if size and image.shape[:2] != tuple(size):
        image = _resize(image, (size[0], size[1]), resize)
    return image if image.ndim == 3 else image[:, :, None]


def _resize(image: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    scales = size[0] / image.shape[0], size[1] / image.shape[1]
    if resize == "stretch":
        height, width = size
    else:
        scale = max(scales) if resize == "crop" else min(scales)
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=method)
    if resize == "crop":
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return image[top : top + size[0], left : left + size[1]]
    below, right = size[0] - height, size[1] - width
    borders = [(below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0)]
    return np.pad(image, borders[: image.ndim])


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")  # I: 16-bit grey


def _to_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] if the file is grey, else [H, W, 3]."""
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image if image.mode == mode else image.convert(mode))


def _explain(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is damaged, or not a JPEG, PNG, WebP or BMP image")
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path}: {error.strerror}")
    return UserError(f"{path} is damaged: {' '.join(str(error).split())}")
