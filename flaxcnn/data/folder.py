"""Image folders: one per class, in `train/ validation/ test/` or directly."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxcnn.data.images import ImageFormat, probe_image, read_image
from flaxcnn.data.splits import Opened, Records, map_chunks
from flaxcnn.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SPLIT_OF = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class FolderRecords:
    """Image files and their labels."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    format: ImageFormat

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, int]]:
        """See `flaxcnn.data.splits.Records`."""
        for index in indices:
            try:
                image = read_image(self.paths[index], *self.format)
            except UserError as error:
                image = error
            yield image, self.labels[index]


def open_folder(path: str, image_format: ImageFormat) -> Opened:
    """The classes and splits of a folder; one without splits has only "all".

    Classes are sorted by name, and files within a class. Hidden files and those that are no images
    are left aside. Raises UserError if classes are missing, empty or not the same in every split,
    or if images differ in size and the format has none.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.source: there is no folder {root}; --config.data.source=folder:PATH says where "
            "your images are, in a folder for each class"
        )
    folders = _find_splits(root)
    class_names = tuple(folder.name for folder in _folders_in(next(iter(folders.values()))))
    if len(class_names) < 2:
        raise UserError(
            f"data.source: {root} needs at least two folders of images, one per class, directly or "
            f"in train, validation and test; found {', '.join(class_names) or 'none'}"
        )
    files = {name: _find_files(folder, class_names) for name, folder in folders.items()}
    image_shape = _find_shape([path for paths, _ in files.values() for path in paths], image_format)
    full = ImageFormat(image_shape[:2], image_format.resize, image_shape[2])
    records: dict[str, Records] = {
        name: FolderRecords(*of_split, full) for name, of_split in files.items()
    }
    return Opened(class_names, image_shape, records)


def _folders_in(folder: Path) -> list[Path]:
    visible = (child for child in folder.iterdir() if not child.name.startswith("."))
    return sorted(child for child in visible if child.is_dir())


def _find_splits(root: Path) -> dict[str, Path]:
    """The folder of each split, train first; {"all": root} if root holds the classes."""
    children = _folders_in(root)
    named = [child for child in children if child.name.lower() in _SPLIT_OF]
    if not any(_folders_in(child) for child in named):  # a class may be called "train"
        return {"all": root}
    splits: dict[str, Path] = {}
    for child in named:
        split = _SPLIT_OF[child.name.lower()]
        if split in splits:
            raise UserError(f"data.source: {splits[split]} and {child} are both the {split} split")
        splits[split] = child
    if "train" not in splits:
        raise UserError(f"data.source: {root} has no train folder beside {named[0].name}")
    for child in children:
        if child not in named:
            print(f"{child} is neither train, validation nor test: left aside", file=sys.stderr)
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def _find_files(
    folder: Path, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Paths and labels of the images in `folder`, class by class."""
    found = [child.name for child in _folders_in(folder)]
    if differing := sorted(set(found) ^ set(class_names)):
        raise UserError(
            f"data.source: {folder} must hold the classes of train; only one of the two has "
            f"{', '.join(differing[:5])}{' ...' if differing[5:] else ''}"
        )
    paths, labels = [], []
    for label, name in enumerate(class_names):
        files = sorted(
            str(file)
            for file in (folder / name).iterdir()
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
        )
        if not files:
            raise UserError(f"data.source: {folder / name} holds no JPEG, PNG, WebP or BMP image")
        paths += files
        labels += [label] * len(files)
    return tuple(paths), tuple(labels)


def _find_shape(paths: list[str], image_format: ImageFormat) -> tuple[int, int, int]:
    """The one shape of all images: from the format, and where it is open from the files."""
    size, _, channels = image_format
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
        raise UserError("data.source: none of the images can be read")
    height, width = size or next(iter(sizes))
    return height, width, channels or max(shape[2] for shape in shapes)
