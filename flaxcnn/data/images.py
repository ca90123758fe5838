"""Image files to arrays: strict decoding, then one size and one number of channels for all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError, features

from flaxcnn.errors import UserError

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}
# Pillow before 11.3, and some builds of it, cannot read AVIF.
FILE_FORMATS = tuple(name for name in _SUFFIXES if name != "AVIF" or features.check("avif"))
FILE_SUFFIXES = frozenset(suffix for name in FILE_FORMATS for suffix in _SUFFIXES[name])
_READ = f"{', '.join(FILE_FORMATS[:-1])} or {FILE_FORMATS[-1]}".replace("WEBP", "WebP")

# How a file of these formats begins: what is no image of them is not called damaged.
_SIGNATURES = {
    "JPEG": rb"\xff\xd8",
    "PNG": rb"\x89PNG",
    "WEBP": rb"RIFF(....WEBP|.{0,7}$)",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8",
    "AVIF": rb"....ftypavi[fs]",
}
_HEIC = rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"

_EXIF_ORIENTATION = 0x0112
_TURNS = {  # by the EXIF standard's numbers; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFormat(NamedTuple):
    """What `fit_image` makes of an image; the fields are the config's, in its words."""

    size: tuple[int, ...]  # (height, width), or () to keep an image's own
    resize: str  # one of `choices.RESIZE`
    channels: int  # 1 grey, 3 RGB, 0 as in the image
    fit: Callable[[np.ndarray], np.ndarray] | None = None  # [H, W, C] to size, instead of `resize`


def read_image(
    path: str | Path,
    size: tuple[int, ...],
    resize: str,
    channels: int,
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    fast: bool = False,
) -> np.ndarray:
    """An image file as uint8 [H, W, C], by the rules of `fit_image`.

    Reads JPEG, PNG, WebP, BMP, TIFF, GIF and, where Pillow can, AVIF, whatever the file is called;
    of several frames or pages the first. The orientation noted by a camera (EXIF) is applied,
    16-bit samples keep their high byte, transparent pixels are shown on white. Raises UserError
    naming the file if it cannot be opened, is of another kind, too large, or damaged: a file that
    ends too early is, even where a lenient decoder would fill it up. `fast` decodes a JPEG file
    that is much larger than `size` at 1/2, 1/4 or 1/8 of its own, and resizes it as `fit_image`
    does one with `whole`; other files are read as without.
    """
    try:
        with Image.open(path, formats=FILE_FORMATS) as image:
            whole = _decode_part(image, size, resize) if fast and size and not fit else ()
            pixels = _to_pixels(image)  # loads it; to Pillow truncated data is an error
        return fit_image(pixels, size, resize, channels, fit, whole=whole)
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise _explain(path, error) from error


def _decode_part(image: Image.Image, size: tuple[int, ...], resize: str) -> tuple[int, ...]:
    """Makes a JPEG file load at the part of its size that is enough; its whole size, or ()."""
    whole = _upright_size(image)
    scale = find_scale(whole, size, resize)
    # What is decoded may reach beyond the right and lower end, which turning would move.
    if _orientation(image) != 1 and (whole[0] % scale or whole[1] % scale):
        return ()
    part = image.draft(None, (image.width // scale, image.height // scale))
    return whole if part else ()  # no other format has parts


def probe_image(path: str | Path) -> tuple[int, int, int]:
    """(height, width, channels) that `read_image` gives a file of its own size, from its header.

    Raises UserError naming the file if there is no valid header.
    """
    try:
        with Image.open(path, formats=FILE_FORMATS) as image:
            return *_upright_size(image), 1 if _is_grey(image) else 3
    except Exception as error:  # as above
        raise _explain(path, error) from error


def fit_image(
    image: np.ndarray,
    size: tuple[int, ...],
    resize: str,
    channels: int,
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    whole: tuple[int, ...] = (),
) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> uint8 [height, width, channels].

    With `size` (height, width), "crop" scales the shorter side to size and cuts the centre out,
    "stretch" ignores the proportions, "pad" scales the longer side and adds black borders.
    Shrinking averages areas, enlarging interpolates linearly. Grey is Rec. 601 luma. An image that
    was decoded at a part of its size, (height, width) `whole`, goes where the whole would; what is
    left to shrink by less than 2 is interpolated linearly, which then still uses every pixel.
    `fit` does it in another way: how images were made for pretrained weights.
    """
    if channels == 1 and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif channels == 3 and image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if fit is not None:
        return fit(image if image.ndim == 3 else image[:, :, None])
    if size and image.shape[:2] != tuple(size):
        image = _resize(image, (size[0], size[1]), resize, whole)
    return image if image.ndim == 3 else image[:, :, None]


def fit_matrix(image_size: tuple[int, int], size: tuple[int, ...], resize: str) -> np.ndarray:
    """Where `fit_image` takes the points of an image of `image_size` (height, width).

    float32 [3, 3], which moves targets (`data/targets.py`): pixels from the top left corner, the
    centre of the first one at (0.5, 0.5). It begins at the upright image, whose size `probe_image`
    gives: coordinates noted for an image as it is stored have to be turned first.
    """
    if not size or tuple(image_size) == tuple(size):
        return np.eye(3, dtype=np.float32)
    (height, width), (down, right) = _place(image_size, (size[0], size[1]), resize)
    y, x = height / image_size[0], width / image_size[1]
    return np.array([[x, 0, right], [0, y, down], [0, 0, 1]], np.float32)


def _place(
    image_size: tuple[int, int], size: tuple[int, int], resize: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) that an image is scaled to, and how far (down, right) it then moves."""
    if resize == "stretch":
        return size, (0, 0)
    scales = size[0] / image_size[0], size[1] / image_size[1]
    scale = max(scales) if resize == "crop" else min(scales)
    height, width = (max(1, round(side * scale)) for side in image_size)
    if resize == "crop":
        return (height, width), (-((height - size[0]) // 2), -((width - size[1]) // 2))
    return (height, width), ((size[0] - height) // 2, (size[1] - width) // 2)


def find_scale(whole: tuple[int, int], size: tuple[int, ...], resize: str) -> int:
    """8, 4, 2 or 1: what an image of (height, width) `whole` can be divided by on decoding."""
    (height, width), _ = _place(whole, (size[0], size[1]), resize) if size else (whole, 0)
    most = min(whole[0] // height, whole[1] // width)
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(most, 1))


def _resize(
    image: np.ndarray, size: tuple[int, int], resize: str, whole: tuple[int, ...]
) -> np.ndarray:
    before = (image.shape[0], image.shape[1])
    if whole and before != whole:
        return _resize_part(image, size, resize, (whole[0], whole[1]))
    (height, width), (down, right) = _place(before, size, resize)
    shrinks = height * width < before[0] * before[1]
    if whole:
        shrinks = before[0] >= 2 * height or before[1] >= 2 * width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=method)
    if resize == "crop":
        return image[-down : size[0] - down, -right : size[1] - right]
    return _pad(image, size, (down, right))


def _pad(image: np.ndarray, size: tuple[int, int], offset: tuple[int, int]) -> np.ndarray:
    (height, width), (down, right) = image.shape[:2], offset
    borders = [(down, size[0] - height - down), (right, size[1] - width - right), (0, 0)]
    return np.pad(image, borders[: image.ndim])


def _resize_part(
    image: np.ndarray, size: tuple[int, int], resize: str, whole: tuple[int, int]
) -> np.ndarray:
    """Resizes what was decoded at 1/2, 1/4 or 1/8; its last pixels may reach beyond the whole."""
    (height, width), (down, right) = _place(whole, size, resize)
    sides = image.shape[:2]
    scale = next(s for s in (2, 4, 8) if (-(-whole[0] // s), -(-whole[1] // s)) == sides)
    y, x = whole[0] / height / scale, whole[1] / width / scale  # pixels of `image` to one of ours
    rows, columns = max(1, int(y)), max(1, int(x))
    if rows > 1 or columns > 1:  # areas first: what is left is less than 2
        made = sides[1] // columns, sides[0] // rows
        image = image[: made[1] * rows, : made[0] * columns]
        image = cv2.resize(image, made, interpolation=cv2.INTER_AREA)
        y, x = y / rows, x / columns
    first_y, first_x = (-down, -right) if resize == "crop" else (0, 0)
    made = size if resize == "crop" else (height, width)
    matrix = np.array(
        [[x, 0, (first_x + 0.5) * x - 0.5], [0, y, (first_y + 0.5) * y - 0.5]], np.float64
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image = cv2.warpAffine(
        image, matrix, (made[1], made[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return image if resize == "crop" else _pad(image, size, (down, right))


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")  # I: 16-bit grey


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)  # from 5 on its side


def _orientation(image: Image.Image) -> int:
    """How the stored image has to be turned, a number of the EXIF standard; 1 if by nothing.

    Numbers that the standard does not have, and notes that cannot be read, turn nothing.
    """
    if image.format == "TIFF":  # Pillow turns these itself; their `size` is that of the turned
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged note is no damaged image
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] if the file is grey, else [H, W, 3]."""
    orientation = _orientation(image)
    if orientation != 1:
        image = image.transpose(_TURNS[orientation])
    if image.mode == "F":
        raise NotImplementedError("its samples are floating-point numbers")
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise NotImplementedError("its samples have more than 16 bits")
        return (samples >> 8).astype(np.uint8)
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image if image.mode == mode else image.convert(mode))


def _explain(path: str | Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} {_explain_contents(path)}")
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path}: {error.strerror}")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return UserError(f"{path} is too large: {reason.partition(',')[0]}")
    if isinstance(error, MemoryError | cv2.error):
        return UserError(f"{path} is too large or too narrow to be brought to size in memory")
    if isinstance(error, NotImplementedError) or re.search("(?i)unsupp|not (supp|avail)", reason):
        return UserError(f"{path} cannot be read: {reason}")
    return UserError(f"{path} is damaged: {reason}")


def _explain_contents(path: str | Path) -> str:
    """Why Pillow does not know what the file is."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "is damaged: it is empty"
    if re.match(_HEIC, start, re.DOTALL):
        return f"is a HEIC image, which cannot be read: convert it to {_READ}"
    kinds = [name for name, begin in _SIGNATURES.items() if re.match(begin, start, re.DOTALL)]
    if not kinds or kinds[0] not in FILE_FORMATS:
        return f"is no {_READ} image"
    if kinds[0] in ("TIFF", "BMP"):  # of which there are kinds that Pillow does not know
        return f"is damaged, or a kind of {kinds[0]} that cannot be read"
    return "is damaged: there is no valid header"
