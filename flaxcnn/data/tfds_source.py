"""tensorflow-datasets, and the only file that knows of it. Reading never imports TensorFlow."""

import dataclasses
import difflib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from flaxcnn.data.annotated import BoxNote
from flaxcnn.data.images import ImageFormat, find_scale, fit_image, fit_matrix
from flaxcnn.data.splits import Opened, Records, map_chunks
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


def open_tfds(name: str, image_format: ImageFormat) -> Opened:
    """The classes and splits of the set that tfds knows as `name`.

    The data directory is TFDS_DATA_DIR, or tfds's own default. A set that is not there yet is
    downloaded and prepared if TensorFlow is installed. Of "name#feature" the targets are the masks
    in that feature. Raises UserError if TensorFlow is not installed, for an unknown set, one
    without image and label, or images of several sizes and none in the format.
    """
    import tensorflow_datasets as tfds

    name, _, mask = name.partition("#")
    builder, class_names, image_shape, has_objects = _open_builder(name, image_format, mask)
    _prepare(name, builder)
    full = image_format._replace(size=image_shape[:2], channels=image_shape[2])
    # Every image feature stays encoded: ours to be decoded here, the others because none asks.
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    records: dict[str, Records] = {}
    for split in ("train", "validation", "test"):
        if split in builder.info.splits:
            try:
                source = builder.as_data_source(split, decoders=skip)
            except NotImplementedError as error:  # prepared earlier, in a format read in order only
                raise UserError(
                    f"tfds:{name} in {builder.data_dir} is stored as "
                    f"{builder.info.file_format.value}; prepare it again in another TFDS_DATA_DIR"
                ) from error
            title = f"tfds:{name} {split}"
            records[split] = TfdsRecords(source, title, full, len(class_names))
            if has_objects:
                records[split] = TfdsObjects(source, title, full, len(class_names))
            if mask:
                records[split] = TfdsMasks(source, title, full, len(class_names), mask=mask)
    if "train" not in records:
        raise UserError(
            f"data.source: tfds:{name} has no train split; it has {', '.join(builder.info.splits)}"
        )
    if has_objects:
        records = _count_objects(records)
    if mask and not class_names:
        class_names, records = _number_classes(records)
    return Opened(
        class_names,
        image_shape,
        records,
        version=builder.info.full_name,
        labelled=not has_objects and not mask,
    )


def _number_classes(records: Mapping[str, Records]) -> tuple[tuple[str, ...], dict[str, Records]]:
    """Numbers as names, of the classes that masks have."""
    highest = max(r.highest() for r in records.values() if isinstance(r, TfdsMasks))
    named = tuple(map(str, range(highest + 1)))
    return named, {s: dataclasses.replace(r, classes=len(named)) for s, r in records.items()}  # type: ignore[type-var]


def _count_objects(records: Mapping[str, Records]) -> dict[str, Records]:
    """The records with room for as many boxes as any image has; a test split without any goes."""
    counts = {s: r.count() for s, r in records.items() if isinstance(r, TfdsObjects)}
    if "test" in counts and not counts["test"].any():
        title = records["test"].title  # type: ignore[attr-defined]
        print(f"{title} has no objects in {len(counts['test'])} images: it is not measured",
              file=sys.stderr)  # fmt: skip
        del counts["test"]
    most = max((int(of_split.max(initial=0)) for of_split in counts.values()), default=0)
    if not most:
        raise UserError("data.source: the set has no objects")
    return {s: dataclasses.replace(records[s], most=most) for s in counts}  # type: ignore[type-var]


def read_header(
    name: str, image_format: ImageFormat
) -> tuple[tuple[str, ...], tuple[int, int, int], dict[str, int]]:
    """Class names, (height, width, channels) and the images of each split, without reading any.

    No splits if the set is not prepared yet. Raises UserError as `open_tfds`.
    """
    name, _, mask = name.partition("#")
    builder, class_names, image_shape, _ = _open_builder(name, image_format, mask)
    counts = {
        split: info.num_examples
        for split, info in builder.info.splits.items()
        if split in ("train", "validation", "test")
    }
    return class_names, image_shape, counts


def _open_builder(
    name: str, image_format: ImageFormat, mask: str
) -> tuple[Any, tuple[str, ...], tuple[int, int, int], bool]:
    """The builder, class names, (height, width, channels), and whether boxes stand for labels.

    With `mask`, a feature's name, its names of classes, if it has any.
    """
    import tensorflow_datasets as tfds

    builder = _make_builder(name)
    features = builder.info.features
    columns = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = columns.get("image"), columns.get("label")
    if mask:
        names = _find_mask(name, columns, mask)
        return builder, names, _find_shape(name, image, image_format), False
    objects = getattr(columns.get("objects"), "feature", None)
    has_objects = False
    if label is None and isinstance(objects, tfds.features.FeaturesDict):
        has_objects, of_object = True, dict(objects.items())
        if isinstance(of_object.get("bbox"), tfds.features.BBoxFeature):
            label = of_object.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        kinds = [f"{key} ({type(feature).__name__})" for key, feature in columns.items()]
        raise UserError(
            f"data.source: tfds:{name} is not a set of images with a label of a class, or with "
            f"objects that have bbox and label; it has {', '.join(kinds) or 'no named features'}"
        )
    image_shape = _find_shape(name, image, image_format)
    return builder, tuple(label.names), image_shape, has_objects


def _find_mask(name: str, columns: Mapping[str, Any], mask: str) -> tuple[str, ...]:
    """The names of a mask's classes, () for none. Raises UserError if it is no mask."""
    import tensorflow_datasets as tfds

    pictures = {k: f for k, f in columns.items() if isinstance(f, tfds.features.Image)}
    shapes: dict[str, Any] = {key: feature.shape for key, feature in pictures.items()}
    grey = [key for key, shape in shapes.items() if shape[-1] == 1 and key != "image"]
    if mask not in grey or "image" not in pictures:
        raise UserError(
            f"data.source: tfds:{name} has no masks called {mask!r} beside its images; there are "
            f"{', '.join(grey) or 'none'}"
        )
    return tuple(getattr(columns[mask], "names", None) or ())


def _make_builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        # tfds reads TFDS_DATA_DIR when it is imported; later changes count here too.
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"data.source: tfds knows no set named {name}{hint}") from error
    except ImportError as error:
        raise UserError(
            f"data.source: tfds:{name} needs a package that is missing ({error.name}); "
            "pip install tensorflow brings what data sets are prepared with"
        ) from error
    except Exception as error:  # wrong version, config or spelling: tfds tells it in the first line
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"data.source: tfds:{name} cannot be opened: {reason}") from error


def _find_shape(name: str, feature: Any, image_format: ImageFormat) -> tuple[int, int, int]:
    height, width, channels = feature.shape
    if np.dtype(feature.np_dtype) != np.uint8 or channels not in (1, 3, None):
        raise UserError(
            f"data.source: tfds:{name} has images of {channels} channels of "
            f"{np.dtype(feature.np_dtype)}; only uint8 with 1 or 3 channels can be used"
        )
    if image_format.size:
        height, width = image_format.size
    elif height is None or width is None:
        raise UserError(f"data.source: images of tfds:{name} differ in size: set data.image_size")
    channels = image_format.channels or channels
    if channels is None:
        raise UserError(f"data.source: tfds:{name} has grey and RGB images: set data.channels")
    return height, width, channels


def _prepare(name: str, builder: Any) -> None:
    if builder.info.splits:  # empty until the set is prepared
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}, which takes TensorFlow once: "
            "pip install tensorflow, or set TFDS_DATA_DIR to where it is prepared"
        )
    builder.download_and_prepare(file_format="array_record")
