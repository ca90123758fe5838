"""Image files with targets that have places: what is noted for a file moves as its image is read.

The sources `masks:`, `keypoints:` and `boxes:` are made of this. Images are brought to size by
`images.fit_image`; what they show goes along by `images.fit_matrix`, here in NumPy, as worker
processes do nothing with JAX: `data/targets.py` has the same for what happens on the device.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flaxcnn.data.images import ImageFormat, fit_matrix, probe_image, read_image
from flaxcnn.data.splits import SHOWN, Records
from flaxcnn.data.targets import IGNORED, LEAST_SIDE, Boxes, Keypoints, Mask, move_classes
from flaxcnn.errors import UserError


class Annotation(Protocol):
    """What is noted for one image file."""

    def fitted(self, matrix: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]) -> Any:
        """The target of the image that `matrix` makes, of `size`; it was of `image_size`.

        Raises UserError naming the file for what cannot be read.
        """
        ...


@dataclass(frozen=True)
class AnnotatedRecords(Records):
    """Image files and what is noted for each."""

    paths: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    format: ImageFormat  # whole: with a size and channels
    fast: bool = False  # see `read_image`

    def __len__(self) -> int:
        return len(self.paths)

    def streamed(self) -> "AnnotatedRecords":
        """See `flaxcnn.data.splits.Records`."""
        return dataclasses.replace(self, fast=True)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, Any]]:
        """See `flaxcnn.data.splits.Records`."""
        size, resize = self.format.size, self.format.resize
        for index in indices:
            path = self.paths[index]
            try:
                height, width, _ = probe_image(path)
                matrix = fit_matrix((height, width), size, resize)
                noted = self.annotations[index]
                target = noted.fitted(matrix, (height, width), (size[0], size[1]))
                yield read_image(path, *self.format, fast=self.fast), target
            except UserError as error:
                yield error, None


@dataclass(frozen=True)
class KeypointNote(Annotation):
    """Points of an image, in its own pixels."""

    points: np.ndarray  # float32 [K, 2]
    visible: np.ndarray  # bool [K]
    pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...] = ()

    def fitted(
        self, matrix: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]
    ) -> Keypoints:
        """See `Annotation`."""
        points = self.points * matrix[[0, 1], [0, 1]][None] + matrix[:2, 2][None]
        inside = ((points >= 0) & (points <= np.array([[size[1], size[0]]]))).all(axis=-1)
        visible = self.visible & inside
        points = np.where(visible[:, None], points, 0).astype(np.float32)
        return Keypoints(points, visible, self.pairs, self.limbs)


@dataclass(frozen=True)
class BoxNote(Annotation):
    """Boxes of an image, in its own pixels; its target has room for `most`, if that is more."""

    boxes: np.ndarray  # float32 [M, 4]
    labels: np.ndarray  # int32 [M]
    valid: np.ndarray  # bool [M]
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None
    most: int = 0
    least_side: float = LEAST_SIDE  # pixels of the new image, of a box that counts

    def fitted(
        self, matrix: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]
    ) -> Boxes:
        """See `Annotation`."""
        scale, shift = matrix[[0, 1, 0, 1], [0, 1, 0, 1]], matrix[[0, 1, 0, 1], 2]
        whole = self.boxes * scale[None] + shift[None]
        height, width = size
        cut = np.clip(whole, 0, np.array([[width, height, width, height]]))
        sides = cut[:, 2:] - cut[:, :2]
        valid = self.valid & ((sides >= self.least_side) & (sides > 0)).all(axis=-1)
        area = self.area
        if area is not None:
            before = (whole[:, 2:] - whole[:, :2]).prod(axis=-1)
            share = sides.prod(axis=-1) / np.where(before > 0, before, 1)
            area = np.where(valid, area * share * scale[0] * scale[1], 0).astype(np.float32)
        cut = np.where(valid[:, None], cut, 0).astype(np.float32)
        room = [(0, max(0, self.most - len(cut)))]
        return Boxes(
            np.pad(cut, [*room, (0, 0)]),
            np.pad(valid, room),
            np.pad(self.labels, room),
            None if self.crowd is None else np.pad(self.crowd, room),
            None if area is None else np.pad(area, room),
            placed=np.array([*scale[:2], *shift[:2], *image_size[::-1]], np.float32),
        )


@dataclass(frozen=True)
class MaskFile(Annotation):
    """A picture whose pixels are classes: grey, or the places in its palette."""

    path: str
    classes: int
    ignored: int | None  # the value of pixels that are not known, beside 255

    def fitted(
        self, matrix: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]
    ) -> Mask:
        """See `Annotation`. Each pixel takes the class of the nearest one, 255 beyond the image."""
        values = read_mask(self.path)
        if values.shape != image_size:
            turned = "; images are turned as their camera noted (EXIF), masks are not"
            raise UserError(
                f"{self.path} is {values.shape[1]}x{values.shape[0]}, and its image "
                f"{image_size[1]}x{image_size[0]}"
                f"{turned if values.shape == image_size[::-1] else ''}"
            )
        values = np.where(values == self.ignored, IGNORED, values)
        wrong = values[(values >= self.classes) & (values != IGNORED)]
        if wrong.size:
            raise UserError(
                f"{self.path} has a pixel of class {wrong[0]}: there are classes "
                f"0..{self.classes - 1}, and {IGNORED} is ignored"
            )
        return Mask(move_classes(values.astype(np.uint8), matrix, size))


def read_mask(path: str | Path) -> np.ndarray:
    """The values of a mask's pixels, int [H, W]. Raises UserError naming the file."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise UserError(
                    f"{path} is a picture in {image.mode}: a mask is grey or has a palette, and "
                    "its pixels are the numbers of classes"
                )
            return np.asarray(image).astype(np.int64)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error


class Mistakes:
    """What is wrong with annotations, told all together: the first lines, and how many more."""

    def __init__(self, source: str):
        self._source, self._lines = source, list[str]()

    def add(self, line: str) -> None:
        """Another one."""
        self._lines.append(line)

    def tell(self) -> None:
        """Raises UserError, a line for each mistake, if there were any."""
        if not self._lines:
            return
        more = [f"and {len(self._lines) - SHOWN} more"] if len(self._lines) > SHOWN else []
        raise UserError("\n".join([f"{self._source}:", *self._lines[:SHOWN], *more]))
