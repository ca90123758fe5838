"""What images were made into for the network that weights come from: size, crop, normalisation."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.core import Tracer
from PIL import Image

from flaxcnn.data.choices import RESIZE
from flaxcnn.data.images import fit_image, fit_matrix, read_image
from flaxcnn.errors import UserError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "area": None,  # of `data.images`, as a run without weights reads its images
}
# `keras.applications`: what `preprocess_input` does, for pixels of 0..255.
KERAS_MODES = {
    "caffe": {
        "mean": (103.939, 116.779, 123.68),
        "std": (1, 1, 1),
        "input_range": (0, 255),
        "input_space": "BGR",
    },
    "tf": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "torch": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
_CROP_MODES = {"center": "crop", "squash": "stretch", "border": "pad"}  # timm's word -> ours


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """An image file or array to what a network takes, as its weights were evaluated.

    Called with images [..., H, W, C], uint8 or floats in 0..1 (channels red, green, blue), it
    returns float32, `(x - mean) / std`. `read` and `fit` bring files and arrays to `image_size`.

    Attributes:
      image_size: height and width.
      mean, std: per channel, for pixels of 0..1.
      crop: share of the scaled image's side that is kept, as 224 of 256.
      interpolation: one of INTERPOLATIONS. All but "area" are Pillow's, which averages over more
        pixels where it shrinks (antialiasing).
      resize: "crop" scales the shorter side and cuts the centre out, "stretch" ignores the
        proportions, "pad" scales the longer side and adds borders of the mean's colour; "": images
        of another size are refused.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    resize: str = "crop"

    def __post_init__(self) -> None:
        """Raises UserError for what no image can be made into."""
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UserError(f"image_size must be (height, width), got {self.image_size}")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise UserError(
                f"mean and std need a number per channel, std above 0, got {self.mean}, {self.std}"
            )
        if not 0 < self.crop <= 2:
            raise UserError(f"crop must be a share above 0, got {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UserError(f"interpolation must be one of {known}, got {self.interpolation!r}")
        if self.resize not in ("", *RESIZE):
            raise UserError(f"resize must be one of {', '.join(RESIZE)}, got {self.resize!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """From the words of timm's `pretrained_cfg`; what is missing is timm's default.

        `input_size` [C, H, W] or a side, `mean`, `std`, `crop_pct`, `crop_mode`, `interpolation`;
        also `resize_size` (the scaled side, torchvision's), `input_range` [0, 255], `input_space`
        "BGR" (mean and std too are then of blue first) and `mode` (of KERAS_MODES). These become
        RGB and 0..1; the first kernel's channels have to be flipped too (`reads_bgr`).
        Raises UserError for values of another kind.
        """
        config = {**KERAS_MODES.get(str(config.get("mode")), {}), **config}
        config = {key: value for key, value in config.items() if value is not None}
        fields: dict[str, Any] = {"mean": KERAS_MODES["torch"]["mean"]}
        fields |= {"std": KERAS_MODES["torch"]["std"], "image_size": (224, 224)}
        fields["interpolation"] = "bicubic"
        try:
            if "input_size" in config:
                fields["image_size"] = _read_size(config["input_size"])
            low, high = (float(x) for x in config.get("input_range", (0, 1)))
            for name in ("mean", "std"):
                if name in config:
                    values = config[name]
                    values = values if isinstance(values, Sequence) else (values,)
                    offset = low if name == "mean" else 0.0
                    scaled = tuple((float(x) - offset) / (high - low) for x in values)
                    fields[name] = scaled[::-1] if _is_bgr(config, "input_space") else scaled
            if "resize_size" in config:
                fields["crop"] = min(fields["image_size"]) / float(config["resize_size"])
            if "crop_pct" in config:
                fields["crop"] = float(config["crop_pct"])
            if "crop_mode" in config:
                fields["resize"] = _CROP_MODES[config["crop_mode"]]
            if "interpolation" in config:
                fields["interpolation"] = str(config["interpolation"])
        except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
            raise UserError(f"preprocessing cannot be read: {error!r} in {dict(config)}") from error
        if fields.get("interpolation") == "random":  # timm's, of training
            fields["interpolation"] = "bilinear"
        return cls(**fields)

    def to_config(self) -> dict[str, Any]:
        """In the words of timm's `pretrained_cfg`, the inverse of `from_config`."""
        modes = {ours: theirs for theirs, ours in _CROP_MODES.items()}
        smooth = "bilinear" if self.interpolation == "area" else self.interpolation
        return {
            "input_size": [len(self.mean), *self.image_size],
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop,
            "crop_mode": modes[self.resize or "stretch"],
            "interpolation": smooth,
        }

    @property
    def channels(self) -> int:
        """Of images: 3 for colour, 1 for grey."""
        return len(self.mean)

    def for_channels(self, channels: int) -> "Preprocessing":
        """The same for images of another number of channels: the means of the values there are."""
        if channels == self.channels:
            return self
        mean, std = (float(np.mean(x)) for x in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def read(self, file: str | Path) -> np.ndarray:
        """An image file -> uint8 [height, width, channels].

        Raises UserError that names the file if it is no image, or of a size that is refused.
        """
        if self.channels not in (1, 3):
            raise UserError(f"{file}: image files have 1 or 3 channels, and not {self.channels}")
        return self.take(file, read_image(file, (), "crop", self.channels))

    def take(self, file: str | Path, image: np.ndarray) -> np.ndarray:
        """`fit` of an image uint8 [H, W, channels] from a file; raises UserError as `read`."""
        if not self.resize and image.shape[:2] != tuple(self.image_size):
            height, width = self.image_size
            raise UserError(
                f"{file} is {image.shape[1]}x{image.shape[0]} and the run's images are "
                f"{width}x{height}: resize it, or give --resize crop, stretch or pad"
            )
        return self.fit(image)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, channels] -> uint8 [height, width, channels]."""
        size, method = self.image_size, INTERPOLATIONS[self.interpolation]
        if method is None:
            return fit_image(image, size, self.resize or "crop", 0)
        scaled = self._scale(image.shape[0], image.shape[1])
        if scaled != image.shape[:2]:
            height, width = scaled
            plain = image[:, :, 0] if image.shape[-1] == 1 else image
            resized = Image.fromarray(plain).resize((width, height), method)
            image = np.array(resized).reshape(height, width, -1)
        fill = [round(255 * x) for x in self.mean] if self.resize == "pad" else 0
        return _cut_center(image, size, np.array(fill, np.uint8))

    def matrix(self, image_size: tuple[int, int]) -> np.ndarray:
        """Where `fit` takes the points of an image (height, width), as `images.fit_matrix`.

        Of what a run's own images are made into: interpolated by area, and nothing is cropped.
        """
        assert INTERPOLATIONS[self.interpolation] is None
        return fit_matrix(image_size, self.image_size, self.resize or "crop")

    def _scale(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) before the centre is cut out, as timm and torchvision round them."""
        goal = [math.floor(side / self.crop + 1e-6) for side in self.image_size]
        if self.resize == "stretch":
            return goal[0], goal[1]
        if self.resize == "crop" and goal[0] == goal[1]:
            short, side = min(height, width), goal[0]
            other = int(side * max(height, width) / short)
            return (side, other) if height <= width else (other, side)
        choose = min if self.resize == "crop" else max
        ratio = choose(height / goal[0], width / goal[1])
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def __call__(self, images: Any) -> Any:
        """Images [..., H, W, C], uint8 or floats in 0..1, -> float32, normalised.

        Arrays of NumPy or jax. Floats that are visibly in 0..255 are computed as they are, with
        one UserWarning in a process.
        """
        shape = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (np.array(x, np.float32).reshape(shape) for x in (self.mean, self.std))
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
        check_range(images)
        return (images.astype(np.float32) - mean) / std


def check_range(images: Any) -> None:
    """Warns, once in a process, of images that are floats in 0..255 instead of 0..1."""
    if isinstance(images, Tracer) or images.dtype == np.uint8 or not images.size:
        return
    if np.max(np.asarray(images, np.float32)) > 2:
        _warn_of_range()


@functools.cache
def _warn_of_range() -> None:
    line = "images are floats far above 1: pixels must be uint8, or floats in 0..1"
    warnings.warn(line, stacklevel=4)


def reads_bgr(config: Mapping[str, Any]) -> bool:
    """Whether weights with this `pretrained_cfg` want blue first.

    `input_space` is said of mean and std too, `channels` (in the catalogue) of the network alone.
    """
    config = {**KERAS_MODES.get(str(config.get("mode")), {}), **config}
    return _is_bgr(config, "input_space") or _is_bgr(config, "channels")


def _is_bgr(config: Mapping[str, Any], key: str) -> bool:
    return str(config.get(key)).upper() == "BGR"


def _read_size(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size[-2:]  # [C, H, W]
    return int(height), int(width)


def _cut_center(image: np.ndarray, size: tuple[int, int], fill: np.ndarray) -> np.ndarray:
    """The middle of `image`, with borders where it is smaller; torchvision's rounding."""
    before = image.shape[:2]
    missing = [max(0, goal - side) for goal, side in zip(size, before, strict=True)]
    if any(missing):
        whole = [side + more for side, more in zip(before, missing, strict=True)]
        larger = np.broadcast_to(fill, (*whole, image.shape[-1])).copy()
        top, left = (more // 2 for more in missing)
        larger[top : top + before[0], left : left + before[1]] = image
        image = larger
    top, left = (round((image.shape[axis] - size[axis]) / 2) for axis in (0, 1))
    return image[top : top + size[0], left : left + size[1]]
