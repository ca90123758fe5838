"""Folders of images and masks: `images/` beside `masks/`, in `train/ validation/ test/` or not."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.annotated import AnnotatedRecords, MaskFile, Mistakes, read_mask
from flaxcnn.data.folder import find_shape
from flaxcnn.data.folder_files import SPLIT_OF
from flaxcnn.data.images import FILE_SUFFIXES, ImageFormat
from flaxcnn.data.record import Record, check_classes, check_files
from flaxcnn.data.splits import Opened, Records, map_chunks
from flaxcnn.data.targets import IGNORED
from flaxcnn.errors import UserError

_CLASSES = ("classes.json", "meta.json")


def open_masks(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The splits of a folder of images and masks; one without splits has only "all".

    The mask of images/NAME.jpg is masks/NAME.png, grey or with a palette, whose pixels are numbers
    of classes; 255 is ignored. classes.json (or meta.json) beside the splits names the classes,
    {"classes": ["sky", ...], "ignore_index": 11}, of which the ignored one is none; without it they
    are called by their numbers. With the `record` of a run the files must be those recorded.
    Raises UserError with a line for each image without a mask, or mask without an image, up to 20.
    """
    root, source = Path(path).expanduser(), f"masks:{path}"
    folders = _find_splits(root)
    mistakes = Mistakes(source)
    found = {split: _pair(folder, mistakes) for split, folder in folders.items()}
    mistakes.tell()
    masks = {image: mask for pairs in found.values() for image, mask in pairs.items()}
    names, ignored = _read_classes(root, list(masks.values()), mistakes)
    files = {
        split: {
            image.relative_to(root).as_posix(): image.stat().st_size + mask.stat().st_size
            for image, mask in pairs.items()
        }
        for split, pairs in found.items()
    }
    if record:
        check_classes(source, record.class_names, names)
        everything = {name: size for of_split in files.values() for name, size in of_split.items()}
        check_files(source, record.files, everything)
        if record.files:
            files = {s: dict(of_split) for s, of_split in record.files.items() if s != "skipped"}
    paths = {
        split: tuple(f"{root}/{name}" for name in of_split) for split, of_split in files.items()
    }
    shape = find_shape([path for of_split in paths.values() for path in of_split], image_format)
    whole = image_format._replace(size=shape[:2], channels=shape[2])
    records: dict[str, Records] = {
        split: AnnotatedRecords(
            paths[split],
            tuple(MaskFile(str(masks[root / name]), len(names), ignored) for name in of_split),
            whole,
        )
        for split, of_split in files.items()
    }
    return Opened(names, shape, records, files=files, labelled=False)


def _find_splits(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"data.source: there is no folder {root}")
    if (root / "images").is_dir():
        return {"all": root}
    folders: dict[str, Path] = {}
    for child in sorted(root.iterdir()):
        split = SPLIT_OF.get(child.name.lower())
        if split and (child / "images").is_dir():
            if split in folders:
                raise UserError(f"data.source: {folders[split]} and {child} are both {split}")
            folders[split] = child
    if "train" not in folders:
        raise UserError(
            f"data.source: {root} needs images/ and masks/, directly or in train, validation and "
            "test"
        )
    return {name: folders[name] for name in ("train", "validation", "test") if name in folders}


def _pair(folder: Path, mistakes: Mistakes) -> dict[Path, Path]:
    """The images of a split, sorted by name, with their masks."""
    images: dict[str, Path] = {}
    for path in _list_files(folder / "images", FILE_SUFFIXES):
        other = images.setdefault(path.stem, path)
        if other is not path:
            mistakes.add(f"{other} and {path} would have the same mask")
    masks = {p.stem: p for p in _list_files(folder / "masks", {".png"})}
    for stem in sorted(images.keys() - masks.keys()):
        mistakes.add(f"{images[stem]} has no mask: there is no {folder / 'masks' / stem}.png")
    for stem in sorted(masks.keys() - images.keys()):
        mistakes.add(f"{masks[stem]} has no image in {folder / 'images'}")
    if not images:
        mistakes.add(f"{folder / 'images'} holds no image")
    return {images[stem]: masks[stem] for stem in sorted(images.keys() & masks.keys())}


def _list_files(folder: Path, suffixes: Any) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"data.source: there is no folder {folder}")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    return [p for p in files if os.path.splitext(p.name)[1].lower() in suffixes]


def _read_classes(
    root: Path, masks: list[Path], mistakes: Mistakes
) -> tuple[tuple[str, ...], int | None]:
    """The names of the classes, and the value that is ignored beside 255."""
    for name in _CLASSES:
        file = root / name
        if file.is_file():
            try:
                return _parse_classes(json.loads(file.read_text()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f'{file} is no {{"classes": [names]}}: {error}') from error

    def find_highest(indices: np.ndarray) -> list[int | UserError]:
        found = []
        for index in indices:
            try:
                values = read_mask(masks[index])
                found.append(int(values[values != IGNORED].max(initial=0)))
            except UserError as error:
                found.append(error)
        return found

    most = 0
    for chunk in map_chunks(find_highest, len(masks), "classes of masks"):
        for value in chunk:
            if isinstance(value, UserError):
                mistakes.add(str(value))
            else:
                most = max(most, value)
    mistakes.tell()
    if most == 0:
        raise UserError(
            f"data.source: all masks of {root} are of class 0 ({IGNORED} is ignored): pixels have "
            "to be the numbers of classes, 0, 1, ..."
        )
    return tuple(map(str, range(most + 1))), None


def _parse_classes(values: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
    names, ignored = values["classes"], values.get("ignore_index")
    if not isinstance(names, list):
        raise TypeError("classes must be a list of names")
    names = [str(name) for name in names]
    if ignored is not None and ignored == len(names) - 1:
        names.pop()
    elif ignored is not None and 0 <= ignored < len(names):
        raise ValueError(f"ignore_index is {ignored}, and must be the last class or none of them")
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(f"there must be 2 to {IGNORED} classes, and there are {len(names)}")
    return tuple(names), ignored
