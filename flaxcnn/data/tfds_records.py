"""What a prepared set of tensorflow-datasets yields: encoded images with labels, boxes or masks.

Pickled by the processes that decode, so nothing here knows of tfds itself (`tfds_source.py`).
"""

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from flaxcnn.data.annotated import BoxNote
from flaxcnn.data.images import ImageFormat, find_scale, fit_image, fit_matrix
from flaxcnn.data.splits import Records, map_chunks
from flaxcnn.data.targets import IGNORED, Mask, move_classes
from flaxcnn.errors import UserError


@dataclass(frozen=True)
class TfdsRecords(Records):
    """One split of a prepared set. `source` yields encoded images; `title` names it in errors."""

    source: Any
    title: str
    format: ImageFormat
    classes: int
    fast: bool = False  # see `read_image`

    def __len__(self) -> int:
        return len(self.source)

    def read_labels(self, indices: np.ndarray) -> np.ndarray | None:
        """See `flaxcnn.data.splits.Records`."""

        def read(chunk: np.ndarray) -> list[int]:
            return [int(example["label"]) for example in self._examples(indices[chunk])]

        chunks = map_chunks(read, len(indices), f"labels of {self.title}")
        return np.array([label for chunk in chunks for label in chunk], np.int32)

    def streamed(self) -> "TfdsRecords":
        """See `flaxcnn.data.splits.Records`."""
        return dataclasses.replace(self, fast=True)

    def _examples(self, indices: np.ndarray) -> Any:
        return self.source.__getitems__([int(index) for index in indices])

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, int]]:
        """See `flaxcnn.data.splits.Records`."""
        examples = self._examples(indices)
        for index, example in zip(indices, examples, strict=True):
            try:
                image = _decode(example["image"], self.format, self.fast)
                if image is None:
                    image = UserError(f"{self.title}: image {index} is damaged")
            except cv2.error:  # beyond OpenCV's limits, as read or on its way to size
                image = UserError(f"{self.title}: image {index} is too large or too narrow")
            label = int(example["label"])
            if self.fast and not 0 <= label < self.classes:  # else all have been looked at
                image = UserError(
                    f"{self.title}: the label of image {index} is {label}, outside "
                    f"0..{self.classes - 1}"
                )
            yield image, label


@dataclass(frozen=True)
class TfdsObjects(TfdsRecords):
    """Images with objects: `bbox` in shares of the sides, `label`; `is_crowd`, `area` of COCO.

    `is_difficult` of VOC counts as a crowd, as in `voc:`.
    """

    most: int = 0  # boxes that targets have room for

    def read_labels(self, indices: np.ndarray) -> np.ndarray | None:
        """See `flaxcnn.data.splits.Records`."""

    def count(self) -> np.ndarray:
        """The number of objects of each image; all records are read."""

        def of_chunk(indices: np.ndarray) -> list[int]:
            return [len(x["objects"]["label"]) for x in self._examples(indices)]

        chunks = map_chunks(of_chunk, len(self), f"objects of {self.title}")
        return np.array([count for chunk in chunks for count in chunk], np.int64)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, Any]]:
        """See `flaxcnn.data.splits.Records`."""
        for index, example in zip(indices, self._examples(indices), strict=True):
            try:
                encoded = example["image"]
                image = _decode(encoded, self.format, self.fast)
                if image is None:
                    raise UserError(f"{self.title}: image {index} is damaged")
                with Image.open(io.BytesIO(encoded)) as opened:
                    width, height = opened.size
                note = self._note(int(index), example["objects"], height, width)
            except cv2.error:
                error = f"{self.title}: image {index} is too large or too narrow"
                yield UserError(error), None
                continue
            except UserError as error:
                yield error, None
                continue
            size = self.format.size[0], self.format.size[1]
            matrix = fit_matrix((height, width), size, self.format.resize)
            yield image, note.fitted(matrix, (height, width), size)

    def _note(self, index: int, objects: Any, height: int, width: int) -> BoxNote:
        labels = np.asarray(objects["label"], np.int32)
        if ((labels < 0) | (labels >= self.classes)).any():
            raise UserError(
                f"{self.title}: a label of image {index} is outside 0..{self.classes - 1}"
            )
        shares = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)  # top, left, bottom, right
        boxes = shares[:, [1, 0, 3, 2]] * np.array([[width, height, width, height]], np.float32)
        crowd = objects.get("is_crowd", objects.get("is_difficult", np.zeros(len(labels))))
        area = objects.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1))
        return BoxNote(
            boxes,
            labels,
            np.ones(len(labels), bool),
            np.asarray(crowd, bool),
            np.asarray(area, np.float32),
            most=self.most,
            least_side=0.0,
        )


@dataclass(frozen=True)
class TfdsMasks(TfdsRecords):
    """Images with a class for every pixel, in the feature `mask`; 255 is not known."""

    mask: str = ""

    def read_labels(self, indices: np.ndarray) -> np.ndarray | None:
        """See `flaxcnn.data.splits.Records`."""

    def highest(self) -> int:
        """The highest number of a class; all masks are read. Raises UserError for damaged ones."""

        def of_chunk(indices: np.ndarray) -> list[int]:
            masks = (
                self._values(int(index), example[self.mask])
                for index, example in zip(indices, self._examples(indices), strict=True)
            )
            return [int(values[values != IGNORED].max(initial=0)) for values in masks]

        chunks = map_chunks(of_chunk, len(self), f"masks of {self.title}")
        return max((value for chunk in chunks for value in chunk), default=0)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, Any]]:
        """See `flaxcnn.data.splits.Records`."""
        for index, example in zip(indices, self._examples(indices), strict=True):
            try:
                yield self._read(int(index), example)
            except cv2.error:
                error = f"{self.title}: image {index} is too large or too narrow"
                yield UserError(error), None
            except UserError as error:
                yield error, None

    def _read(self, index: int, example: Any) -> tuple[np.ndarray, Mask]:
        image = _decode(example["image"], self.format, self.fast)
        if image is None:
            raise UserError(f"{self.title}: image {index} is damaged")
        with Image.open(io.BytesIO(example["image"])) as opened:
            width, height = opened.size
        values = self._values(index, example[self.mask])
        if values.shape != (height, width):
            raise UserError(
                f"{self.title}: the mask of image {index} is {values.shape[1]}x{values.shape[0]}, "
                f"and its image {width}x{height}"
            )
        wrong = values[(values >= self.classes) & (values != IGNORED)]
        if wrong.size:
            raise UserError(
                f"{self.title}: the mask of image {index} has a pixel of class {wrong[0]}: there "
                f"are classes 0..{self.classes - 1}, and {IGNORED} is ignored"
            )
        size = self.format.size[0], self.format.size[1]
        matrix = fit_matrix((height, width), size, self.format.resize)
        return image, Mask(move_classes(values, matrix, size))

    def _values(self, index: int, encoded: bytes) -> np.ndarray:
        buffer = np.frombuffer(encoded, np.uint8)
        values = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if len(buffer) else None
        if values is None or values.ndim != 2 or values.dtype != np.uint8:
            raise UserError(f"{self.title}: the mask of image {index} is no grey picture")
        return values


_SCALED = {  # by what the sides are divided by, for one and for three channels
    1: (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR),
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}


def _decode(encoded: bytes, image_format: ImageFormat, fast: bool) -> np.ndarray | None:
    whole, scale = (), 1
    if fast and image_format.fit is None and encoded.startswith(b"\xff\xd8"):  # JPEG
        try:
            width, height = Image.open(io.BytesIO(encoded)).size
        except Exception:  # as in images.py; OpenCV has the word on what is damaged
            return None
        whole = height, width
        scale = find_scale(whole, image_format.size, image_format.resize)
    # As tfds itself decodes: a note of the camera's orientation does not count.
    mode = _SCALED[scale][image_format.channels != 1]
    buffer = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(buffer, mode | cv2.IMREAD_IGNORE_ORIENTATION) if len(buffer) else None
    if image is None:
        return None
    if image_format.channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return fit_image(image, *image_format, whole=whole)
