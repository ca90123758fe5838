"""tensorflow-datasets, and the only file that knows of it. Reading never imports TensorFlow."""

import dataclasses
import difflib
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxcnn.data.images import ImageFormat
from flaxcnn.data.splits import Opened, Records
from flaxcnn.data.tfds_records import TfdsMasks, TfdsObjects, TfdsRecords
from flaxcnn.errors import UserError


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
