"""What sources with files of annotations share: where these are, and the images they name.

A source is such a file, with a split for each image or for none, or a folder that holds one file
per split: NAME in train/, validation/ and test/, or, of keypoints, train.json, val.json and so on.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.annotated import Annotation, Mistakes
from flaxcnn.data.folder_files import SPLIT_OF
from flaxcnn.data.images import probe_image
from flaxcnn.data.record import Record, check_classes, check_files
from flaxcnn.data.splits import map_chunks
from flaxcnn.errors import UserError

EDGE = 1.0  # pixels that coordinates may lie beyond an image: tools round them


@dataclass(frozen=True)
class Noted:
    """An example: an image file, or the part of one inside `crop`, and what is noted for it."""

    path: str
    note: Annotation
    crop: tuple[int, int, int, int] | None = None  # left, top, right, bottom


Splits = dict[str, dict[str, Noted]]
"""By split, or of "all", the examples by name: the image's path below the folder."""


def find_annotations(path: str, names: tuple[str, ...]) -> dict[str, Path]:
    """The file of each split, or {"all": file}: `path` itself, or called one of `names` in it.

    Raises UserError if there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return {"all": root}
    if not root.is_dir():
        raise UserError(f"data.source: there is no {root}")
    for name in names:
        if (root / name).is_file():
            return {"all": root / name}
    found: dict[str, Path] = {}
    for child in sorted(root.iterdir()):
        split = SPLIT_OF.get((child.stem if child.is_file() else child.name).lower())
        if split is None:
            continue
        files = [child / name for name in names] if child.is_dir() else [child]
        for file in files:
            if file.is_file() and file.suffix.lower() in {Path(name).suffix for name in names}:
                if split in found:
                    raise UserError(f"data.source: {found[split]} and {file} are both {split}")
                found[split] = file
    if "train" not in found:
        raise UserError(
            f"data.source: {root} holds no {' or '.join(names)}, directly or in train, validation "
            "and test"
        )
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def read_json(file: Path) -> Any:
    """The values of a JSON file. Raises UserError naming it."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def find_split(word: Any, line: str, mistakes: Mistakes) -> str:
    """The split that a `split` of an annotation means; "all" where there is none."""
    if word in (None, ""):
        return "all"
    split = SPLIT_OF.get(str(word).lower())
    if split is None:
        mistakes.add(f"{line}: split must be train, validation or test, got {word!r}")
    return split or "all"


def probe_all(paths: list[Path]) -> dict[Path, tuple[int, int] | UserError]:
    """(height, width) of each image file, or what is wrong with it."""
    unique = list(dict.fromkeys(paths))

    def probe(path: Path) -> tuple[int, int] | UserError:
        try:
            height, width, _ = probe_image(path)
            return height, width
        except UserError as error:
            return error

    def of_chunk(indices: np.ndarray) -> list[Any]:
        return [probe(unique[index]) for index in indices]

    chunks = map_chunks(of_chunk, len(unique), "sizes of images")
    return dict(zip(unique, [size for chunk in chunks for size in chunk], strict=True))


def check_splits(source: str, splits: Splits, mistakes: Mistakes) -> Splits:
    """The splits in order. Raises UserError with all mistakes, or if only some images have one."""
    mistakes.tell()
    if "all" in splits and len(splits) > 1:
        name = next(iter(splits["all"]))
        mistakes.add(f"{name} is of no split, and other images are of one")
    elif "all" not in splits and "train" not in splits:
        mistakes.add("no image is of the split train")
    mistakes.tell()
    order = [split for split in ("all", "train", "validation", "test") if split in splits]
    return {split: splits[split] for split in order}


def recorded(
    source: str, splits: Splits, names: tuple[str, ...], record: Record | None
) -> tuple[Splits, dict[str, dict[str, int]]]:
    """The examples of each split and its `files`, with the `record` of a run as that has them.

    A file's number is its bytes and a checksum of what is noted, so that a run does not go on with
    other annotations. Raises UserError if the set is no longer the one recorded.
    """
    files = {
        split: {n: _weigh(x) for n, x in of_split.items()} for split, of_split in splits.items()
    }
    if record is None:
        return splits, files
    check_classes(source, record.class_names, names)
    everything = {name: size for of_split in files.values() for name, size in of_split.items()}
    check_files(source, record.files, everything)
    if not record.files:
        return splits, files
    files = {s: dict(of_split) for s, of_split in record.files.items() if s != "skipped"}
    noted = {name: x for of_split in splits.values() for name, x in of_split.items()}
    return {s: {name: noted[name] for name in of_split} for s, of_split in files.items()}, files


def _weigh(noted: Noted) -> int:
    leaves = [
        getattr(noted.note, name)
        for name in ("points", "visible", "boxes", "labels", "crowd", "area")
        if getattr(noted.note, name, None) is not None
    ]
    content = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)
    return Path(noted.path).stat().st_size + zlib.crc32(content + repr(noted.crop).encode())


def number(values: Mapping[str, Any], field: str) -> float:
    """A field as a finite number. Raises ValueError."""
    try:
        value = float(values[field])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{field} must be a number, got {values.get(field)!r}") from error
    if not np.isfinite(value):
        raise ValueError(f"{field} must be a number, got {values.get(field)!r}")
    return value
