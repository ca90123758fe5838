"""`load_dataset`: from the config's `data.source` to splits of uint8 images."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxcnn.data.choices import ON_BAD_IMAGE, RESIZE
from flaxcnn.data.images import ImageFormat, fit_image
from flaxcnn.data.record import Files, Record, check_classes, hash_files, listing, refuse
from flaxcnn.data.splits import (
    SHOWN,
    LazySplit,
    Opened,
    Records,
    Split,
    hold_out,
    knows_strata,
    load_records,
    stream_records,
)
from flaxcnn.errors import UserError

_LOOKED_AT = 256  # labels of a split of which not all are read
_DIGITS_SPLIT_SEED = 0  # of no run: every run is tested on the same 360 digits


@dataclass(frozen=True)
class Dataset:
    """What a source holds. `splits` has "train", and where they exist "validation" and "test".

    `class_names` is empty where targets have no classes.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    splits: dict[str, Split]
    skipped: int  # images skipped because they cannot be read
    version: str  # changes with the set: a hash of its files, or the publisher's word
    files: Files = dataclasses.field(default_factory=dict)  # of a folder
    labelled: bool = True  # whether targets are labels, where there are classes

    def replaced(self) -> list[str]:
        """What is wrong with the images of streamed splits that were replaced until now."""
        lazy = [split for split in self.splits.values() if isinstance(split, LazySplit)]
        notes = {id(split.replaced): split.replaced for split in lazy}  # parts of one share them
        return [error for of_records in notes.values() for error in of_records.values()]


def absolute_source(source: str) -> str:
    """`data.source` as it can be used from any folder: a path in it is made absolute."""
    kind, _, path = source.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if kind in FOLDERS and path else source


def check_source(source: str, record: Record) -> None:
    """Raises UserError unless `source` is a folder that holds the files that a run has recorded."""
    kind, _, path = source.partition(":")
    if kind not in FOLDERS:
        raise refuse(source, ["that was a folder"])
    if kind == "folder":
        from flaxcnn.data.folder import check_folder

        check_folder(path, record)
    else:
        OPENERS[kind](path, ImageFormat((1, 1), "crop", 1), record)  # of no other size


def load_dataset(
    source: str,
    *,
    image_size: Sequence[int] = (),
    resize: str = "crop",
    channels: int = 0,
    split: Sequence[float] = (0.7, 0.15, 0.15),
    validation: float = 0.1,
    seed: int = 0,
    on_bad_image: str = "error",
    resident_limit: int = 2**31,
    record: Record | None = None,
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Dataset:
    """Opens "digits", "tfds:<name>", or one of `FOLDERS` and a path, as "coco:PATH".

    The arguments are the fields of `data`.
    Digits are scikit-learn's 1,797 of 8x8 pixels, with a test split that no seed changes. A folder
    of classes without splits is divided by `split` (train, validation, test). Any other source
    without a validation split holds out the share `validation` of train (0 holds out none). Both
    are stratified and depend on `seed` only. The images of splits up to `resident_limit` bytes of
    pixels are decoded once here and stay in memory; those of a larger one are decoded when they
    are loaded, none of them here. There on_bad_image="skip" means what `LazySplit.replace` says.
    A test split whose labels are withheld (all of them outside 0..C-1, as tfds gives -1) is left
    out, which is said on stderr. `fit` brings images to `image_size` in a way of its own (see
    `fit_image`). With the `record` of a run the set must be the one recorded, and
    the splits of a folder are those recorded.
    Raises UserError, in one line, for a wrong field, missing data, images that cannot be read
    (unless on_bad_image="skip"), other labels outside 0..C-1, or a set that has changed.
    """
    image_format = ImageFormat(tuple(image_size), resize, channels, fit)
    _check_fields(image_format, split, validation, on_bad_image, resident_limit)
    kind, _, name = source.partition(":")
    if kind not in OPENERS or bool(name) == (kind == "digits"):
        known = ", ".join(f"{kind}:<path>" for kind in FOLDERS)
        raise UserError(f"data.source must be digits, tfds:<name> or {known}, got {source!r}")
    opened = OPENERS[kind](name, image_format, record)
    if record:
        check_classes(source, record.class_names, opened.class_names)
        if opened.version and record.version not in ("", opened.version):
            raise refuse(source, [f"it is {opened.version}, that was {record.version}"])
        if record.files:
            loaded = _load(source, opened, on_bad_image, resident_limit, refusing=True)
            return dataclasses.replace(loaded, version=record.version, files=record.files)
    dataset = _load(source, opened, on_bad_image, resident_limit)
    by_place = record is not None and not record.version
    dataset = _divide(dataset, split, validation, seed, by_place)
    _note_measured(dataset)
    if not dataset.files:
        return dataset
    version = hash_files(dataset.files)
    if record and record.version not in ("", version):  # the run has lost its list of files
        raise refuse(source, ["its files have changed"])
    return dataclasses.replace(dataset, version=version)


def _check_fields(
    image_format: ImageFormat,
    split: Sequence[float],
    validation: float,
    on_bad_image: str,
    resident_limit: int,
) -> None:
    size, resize, channels, _ = image_format
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(f"data.image_size must be (height, width) or (), got {size}")
    for field, value, choices in (
        ("resize", resize, RESIZE),
        ("channels", channels, (0, 1, 3)),
        ("on_bad_image", on_bad_image, ON_BAD_IMAGE),
    ):
        if value not in choices:
            allowed = ", ".join(map(str, choices))
            raise UserError(f"data.{field} must be one of {allowed}, got {value!r}")
    if len(split) != 3 or min(split) < 0 or split[0] <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UserError(
            "data.split must be the shares of train, validation and test, which sum to 1, "
            f"got {tuple(split)}"
        )
    if not 0 <= validation < 1:
        raise UserError(f"data.validation must be in [0, 1), got {validation}")
    if resident_limit < 0:
        raise UserError(f"data.resident_limit must be at least 0, got {resident_limit}")


@dataclass(frozen=True)
class _Digits(Records):
    """One split of scikit-learn's digits."""

    images: np.ndarray  # uint8 [N, 8, 8]
    classes: np.ndarray
    format: ImageFormat

    def __len__(self) -> int:
        return len(self.classes)

    def labels(self) -> np.ndarray:
        """See `flaxcnn.data.splits.Records`."""
        return self.classes.astype(np.int32)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """See `flaxcnn.data.splits.Records`."""
        for index in indices:
            yield fit_image(self.images[index], *self.format), int(self.classes[index])


def _open_digits(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    ink, labels = load_digits(return_X_y=True)  # from 0 to 16
    images = np.round(np.asarray(ink) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=_DIGITS_SPLIT_SEED
    )
    records: dict[str, Records] = {
        split: _Digits(images[np.sort(part)], np.asarray(labels)[np.sort(part)], image_format)
        for split, part in zip(("train", "test"), parts, strict=True)
    }
    shape = fit_image(images[0], *image_format).shape
    return Opened(tuple("0123456789"), shape, records, version="digits")


def _open_tfds(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.tfds_source import open_tfds  # loads tfds only where it is needed

    return open_tfds(name, image_format)


def _open_folder(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.folder import open_folder

    return open_folder(name, image_format, record)


def _open_masks(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.mask_folder import open_masks

    return open_masks(name, image_format, record)


def _open_boxes(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.box_files import open_boxes

    return open_boxes(name, image_format, record)


def _open_keypoints(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.keypoint_files import open_keypoints

    return open_keypoints(name, image_format, record)


def _open_coco(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.coco_files import open_coco

    return open_coco(name, image_format, record)


def _open_voc(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.voc_files import open_voc

    return open_voc(name, image_format, record)


def _open_yolo(name: str, image_format: ImageFormat, record: Record | None) -> Opened:
    from flaxcnn.data.yolo_files import open_yolo

    return open_yolo(name, image_format, record)


FOLDERS = ("folder", "masks", "boxes", "keypoints", "coco", "voc", "yolo")  # what has a path
OPENERS: dict[str, Callable[[str, ImageFormat, Record | None], Opened]] = {
    "digits": _open_digits,
    "tfds": _open_tfds,
    "folder": _open_folder,
    "masks": _open_masks,
    "boxes": _open_boxes,
    "keypoints": _open_keypoints,
    "coco": _open_coco,
    "voc": _open_voc,
    "yolo": _open_yolo,
}
"""By the word before the colon of `data.source`: (what follows it, format, record) -> `Opened`."""


def _load(
    source: str,
    opened: Opened,
    on_bad_image: str,
    resident_limit: int,
    *,
    refusing: bool = False,
) -> Dataset:
    """Decodes what is to stay in memory; the errors of all splits are reported together.

    `refusing`: what is to stay in memory has been read before, so that it must be readable.
    """
    splits: dict[str, Split] = {}
    files = {name: dict(of_split) for name, of_split in opened.files.items()}
    skipped: dict[str, int] = {}
    errors: list[UserError] = []
    for name, records in opened.records.items():
        title = f"{source} {name}"
        if not len(records):
            if name == "train":
                raise UserError(f"data.source: {title} holds no image")
            print(f"{title} holds no image: it is not used", file=sys.stderr)
            continue
        if len(records) * int(np.prod(opened.image_shape)) > resident_limit:
            split, bad = stream_records(records, replace=on_bad_image == "skip"), {}
        else:
            split, bad = load_records(records, opened.image_shape, title=title)
        errors += bad.values()
        if on_bad_image == "skip" and not len(split):
            raise UserError(f"{title}: none of the {len(records)} images can be read")
        if name in files:
            names = list(files[name])
            skipped |= {names[index]: files[name].pop(names[index]) for index in bad}
        classes = len(opened.class_names)
        labelled = classes and opened.labelled
        if len(split) and (not labelled or _has_labels(title, name, _look_at(split), classes)):
            splits[name] = split
    if errors and refusing:
        raise refuse(source, _name(errors))
    _tell(source, errors, on_bad_image, "; " if opened.labelled else "\n")
    if skipped:
        files["skipped"] = skipped
    return Dataset(
        source,
        opened.class_names,
        opened.image_shape,
        splits,
        len(errors),
        opened.version,
        files,
        opened.labelled,
    )


def _name(errors: list[UserError]) -> list[str]:
    more = [f"and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
    return [*map(str, errors[:SHOWN]), *more]


def _tell(source: str, errors: list[UserError], on_bad_image: str, between: str) -> None:
    """Prints what is skipped, or raises UserError with all that cannot be read."""
    if on_bad_image == "skip":
        for line in _name(errors):
            print(f"skipped: {line}", file=sys.stderr)
    elif errors:
        count = f"{source}: {len(errors)} images cannot be read: " if len(errors) > 1 else ""
        shown = between.join(_name(errors))
        raise UserError(f"{count}{shown} (to skip them: data.on_bad_image=skip)")


def _look_at(split: Split) -> np.ndarray:
    """The labels of a split; of one whose records would have to be read for them, some."""
    if knows_strata(split):
        return split.strata
    spread = np.linspace(0, len(split) - 1, min(len(split), _LOOKED_AT)).astype(np.int64)
    return split.subset(spread).strata


def _has_labels(title: str, name: str, labels: np.ndarray, classes: int) -> bool:
    """False for a test split whose labels are withheld. Raises UserError for other wrong labels."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if name == "test" and len(wrong) == len(labels):
        reason = f"{title} has no labels (all {len(labels)} are outside 0..{classes - 1})"
        print(f"{reason}: it is not measured", file=sys.stderr)
        return False
    if len(wrong):
        raise UserError(
            f"data.source: {title}: {len(wrong)} of {len(labels)} labels are outside "
            f"0..{classes - 1}, the first is {labels[wrong[0]]}"
        )
    return True


def _divide(
    dataset: Dataset, split: Sequence[float], validation: float, seed: int, by_place: bool
) -> Dataset:
    """Divides a folder without splits, and holds out a validation split where there is none."""
    splits, files = dict(dataset.splits), dict(dataset.files)
    shares, field = {"validation": validation}, f"data.validation={validation}"
    if "all" in splits:
        train, held, test = split
        shares, field = (
            {"test": test, "validation": held / (train + held)},
            f"data.split={tuple(split)}",
        )
        splits["train"] = splits.pop("all")
        if files:
            files["train"] = files.pop("all")
    for name, share in shares.items():
        if name in splits or share == 0:
            continue
        whole = splits["train"]
        kept, held = hold_out(whole.strata, share, seed, by_place=by_place)
        if not len(kept) or not len(held):
            raise UserError(
                f"{field} leaves {name} or train without images: there are {len(whole)}"
            )
        splits["train"], splits[name] = whole.subset(kept), whole.subset(held)
        if files:
            names = list(files["train"].items())
            files["train"], files[name] = (dict(names[i] for i in part) for part in (kept, held))
    return dataclasses.replace(dataset, splits=splits, files=files)


def _note_measured(dataset: Dataset) -> None:
    """Says what stands in for a missing test split, and which classes have nothing to learn from.

    On stderr, one line each. Nothing is read for it: the classes of some streamed sets are unknown.
    """
    if "test" not in dataset.splits:
        split = "validation" if "validation" in dataset.splits else "train"
        print(f"{dataset.name} has no test split: {split} stands in for it", file=sys.stderr)
    known = {name: split for name, split in dataset.splits.items() if knows_strata(split)}
    if not dataset.labelled or "train" not in known:
        return
    trained = np.unique(known["train"].strata)
    for name, split in known.items():
        missing = np.setdiff1d(split.strata, trained)
        if len(missing):
            names = listing([dataset.class_names[label] for label in missing])
            print(f"WARNING: {name} has classes without training image: {names}", file=sys.stderr)
