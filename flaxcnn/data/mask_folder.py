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
from flaxcnn.errors import UserError

_CLASSES = "classes.json"


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
    names, ignored = _read_classes(root, [m for pairs in found.values() for m in pairs.values()])
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
    masks = {
        image.relative_to(root).as_posix(): str(mask)
        for pairs in found.values()
        for image, mask in pairs.items()
    }
    paths = {
        split: tuple(f"{root}/{name}" for name in of_split) for split, of_split in files.items()
    }
    shape = find_shape([path for of_split in paths.values() for path in of_split], image_format)
    whole = image_format._replace(size=shape[:2], channels=shape[2])
    records: dict[str, Records] = {
        split: AnnotatedRecords(
            paths[split],
            tuple(MaskFile(masks[name], len(names), ignored) for name in of_split),
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
    images = {p.stem: p for p in _list_files(folder / "images", FILE_SUFFIXES)}
    masks = {p.stem: p for p in _list_files(folder / "masks", {".png"})}
    for stem in images.keys() - masks.keys():
        mistakes.add(f"{images[stem]} has no mask: there is no {folder / 'masks' / stem}.png")
    for stem in masks.keys() - images.keys():
        mistakes.add(f"{masks[stem]} has no image in {folder / 'images'}")
    if not images:
        mistakes.add(f"{folder / 'images'} holds no image")
    return {images[stem]: masks[stem] for stem in sorted(images.keys() & masks.keys())}


def _list_files(folder: Path, suffixes: Any) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"data.source: there is no folder {folder}")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    return [p for p in files if os.path.splitext(p.name)[1].lower() in suffixes]


def _read_classes(root: Path, masks: list[Path]) -> tuple[tuple[str, ...], int | None]:
    """The names of the classes, and the value that is ignored beside 255."""
    for name in (_CLASSES, "meta.json"):
        file = root / name
        if file.is_file():
            try:
                return _parse_classes(json.loads(file.read_text()))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(f'{file} is no {{"classes": [names]}}: {error}') from error

    def highest(indices: np.ndarray) -> int:
        values = (read_mask(masks[index]) for index in indices)
        return max(int(v[v != 255].max(initial=0)) for v in values)

    most = max(map_chunks(highest, len(masks), "classes of masks"))
    if most == 0:
        raise UserError(f"data.source: all masks of {root} are of class 0")
    return tuple(map(str, range(most + 1))), None


def _parse_classes(values: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
    names = [str(name) for name in values["classes"]]
    ignored = values.get("ignore_index")
    if ignored is not None and ignored == len(names) - 1:
        names.pop()
    elif ignored is not None and 0 <= ignored < len(names):
        raise ValueError(f"ignore_index is {ignored}, and must be the last class or none of them")
    if len(names) < 2:
        raise ValueError("it needs two classes")
    return tuple(names), ignored
