"""Image folders: one per class, in `train/ validation/ test/` or directly."""

import contextlib
import dataclasses
import filecmp
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxcnn.data.folder_files import FolderFiles, find_files
from flaxcnn.data.images import ImageFormat, probe_image, read_image
from flaxcnn.data.record import Record, check_classes, check_files, listing
from flaxcnn.data.splits import Opened, Records, map_chunks
from flaxcnn.errors import UserError


@dataclass(frozen=True)
class FolderRecords(Records):
    """Image files and their classes."""

    paths: tuple[str, ...]
    classes: np.ndarray  # int32 [N]
    format: ImageFormat
    fast: bool = False  # see `read_image`

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self) -> np.ndarray:
        """See `flaxcnn.data.splits.Records`."""
        return self.classes

    def streamed(self) -> "FolderRecords":
        """See `flaxcnn.data.splits.Records`."""
        return dataclasses.replace(self, fast=True)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, int]]:
        """See `flaxcnn.data.splits.Records`."""
        for index in indices:
            try:
                image = read_image(self.paths[index], *self.format, fast=self.fast)
            except UserError as error:
                image = error
            yield image, int(self.classes[index])


def open_folder(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The classes and splits of a folder; one without splits has only "all".

    Classes are sorted by name, and so are the files of a class, which may lie in folders within its
    own. Links are followed; hidden files and __MACOSX are skipped. What else is no image, folders
    beside the splits and a test folder without classes are skipped; that is reported on stderr, and
    so is how many images of another split are copies of training images.
    With the `record` of a run the splits are those it has recorded, and files that have been added
    since are skipped.
    Raises UserError if classes are missing, empty or not the same in every split, if images differ
    in size and the format has none, or if the folder is not what was recorded.
    """
    found = find_files(path)
    files, notes = found.files, found.notes
    added = _check(found, f"folder:{path}", record) if record else []
    if record and record.files:
        if added:
            notes.append(f"folder:{path}: {len(added)} new and not in this run: {listing(added)}")
        files = {s: dict(of_split) for s, of_split in record.files.items() if s != "skipped"}
    elif found.divided:
        notes += _find_copies(found)
    for note in notes:
        print(note, file=sys.stderr)
    paths = {
        split: tuple(f"{found.root}/{name}" for name in names) for split, names in files.items()
    }
    image_shape = find_shape(
        [path for of_split in paths.values() for path in of_split], image_format
    )
    full = image_format._replace(size=image_shape[:2], channels=image_shape[2])
    labels = {name: label for label, name in enumerate(found.class_names)}
    records: dict[str, Records] = {
        split: FolderRecords(
            paths[split],
            np.array([labels[found.class_of(name)] for name in names], np.int32),
            full,
        )
        for split, names in files.items()
    }
    return Opened(found.class_names, image_shape, records, files=files)


def check_folder(path: str, record: Record) -> None:
    """Raises UserError unless a folder holds the files that a run has recorded."""
    _check(find_files(path), f"folder:{path}", record)


def _check(found: FolderFiles, source: str, record: Record) -> list[str]:
    check_classes(source, record.class_names, found.class_names)
    everything = {name: size for files in found.files.values() for name, size in files.items()}
    return check_files(source, record.files, everything)


def _find_copies(found: FolderFiles) -> list[str]:
    """A line for each split that has files of the train split, byte for byte the same."""
    lines = []
    train = {name.partition("/")[2]: (name, size) for name, size in found.files["train"].items()}
    for split, files in found.files.items():
        if split == "train":
            continue
        pairs = [
            (name, train[inner][0])
            for name, size in files.items()
            for inner in [name.partition("/")[2]]
            if inner in train and train[inner][1] == size
        ]
        copies = [
            name for name, original in pairs if _is_copy(found.root / name, found.root / original)
        ]
        if copies:
            lines.append(
                f"WARNING: {len(copies)} of {len(files)} images of {split} are also in train, so "
                f"that it measures too well: {listing(copies)}"
            )
    return lines


def _is_copy(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # reading the images will tell
        return False


def find_shape(paths: list[str], image_format: ImageFormat) -> tuple[int, int, int]:
    """The one shape of all images: from the format, and where it is open from the files."""
    size, channels = image_format.size, image_format.channels
    if size and channels:
        return size[0], size[1], channels

    def probe(indices: np.ndarray) -> dict[tuple[int, int, int], str]:
        shapes = {}
        for index in indices:
            # A damaged image has no say; it is reported when it is decoded.
            with contextlib.suppress(UserError):
                shapes.setdefault(probe_image(paths[index]), paths[index])
        return shapes

    shapes: dict[tuple[int, int, int], str] = {}
    for found in map_chunks(probe, len(paths), "image sizes"):
        shapes = found | shapes
    sizes = {shape[:2]: path for shape, path in shapes.items()}
    if not size and len(sizes) > 1:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({a} is {first[1]}x{first[0]}, {b} is {second[1]}x{second[0]}):"
            " set data.image_size"
        )
    if not shapes:
        try:
            probe_image(paths[0])
        except UserError as error:
            raise UserError(f"none of the {len(paths)} images can be read: {error}, ...") from error
    height, width = size or next(iter(sizes))
    return height, width, channels or max(shape[2] for shape in shapes)
