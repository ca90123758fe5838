"""Images with one box each: a CSV or JSON file of file, class, left, top, right, bottom."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.annotated import AnnotatedRecords, BoxNote, Mistakes
from flaxcnn.data.annotation_files import (
    EDGE,
    Noted,
    Splits,
    check_splits,
    find_annotations,
    find_split,
    number,
    probe_all,
    read_json,
    recorded,
)
from flaxcnn.data.folder import find_shape
from flaxcnn.data.images import ImageFormat
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError

_SIDES = ("left", "top", "right", "bottom")
_COLUMNS = ("file", "class", *_SIDES)
_NAMES = ("boxes.csv", "boxes.json")


def open_boxes(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The images of a file of boxes, or of one per split; those without splits are only "all".

    `path` is a CSV file with a header, or a JSON list of objects, or a folder with boxes.csv or
    boxes.json, directly or in train/, validation/ and test/. Columns: file (below the file's own
    folder), class, left, top, right, bottom in pixels of the upright image, from its top left
    corner, and split (train, validation, test) if wanted. Every image has one box; classes are
    sorted by name, and of files per split must all occur in train.
    With the `record` of a run the set must be the one recorded.
    Raises UserError with a line for each mistake, up to 20.
    """
    source = f"boxes:{path}"
    tables = find_annotations(path, _NAMES)
    mistakes = Mistakes(source)
    root = next(iter(tables.values())).parent
    root = root if "all" in tables else Path(path).expanduser()
    rows = [
        (split, table.parent / str(row.get("file")), line, row)
        for split, table in tables.items()
        for line, row in _read_rows(table, mistakes)
    ]
    sizes = probe_all([image for _, image, _, _ in rows])
    names = tuple(sorted({str(r["class"]) for s, _, _, r in rows if s in ("all", "train")}))
    if len(names) < 1:
        mistakes.tell()
        raise UserError(f"{source} holds no image")
    splits: Splits = {}
    seen: set[Path] = set()
    for of_table, image, line, row in rows:
        split = find_split(row.get("split"), line, mistakes) if of_table == "all" else of_table
        try:
            note = _read_box(row, names, image, sizes[image])
            if image in seen:
                raise ValueError(f"{image} has a box already: one per image")
        except (ValueError, UserError) as error:
            mistakes.add(f"{line}: {error}")
            continue
        seen.add(image)
        name = image.relative_to(root).as_posix()
        splits.setdefault(split, {})[name] = Noted(str(image), note)
    splits = check_splits(source, splits, mistakes)
    splits, files = recorded(source, splits, names, record)
    shape = find_shape([x.path for s in splits.values() for x in s.values()], image_format)
    whole = image_format._replace(size=shape[:2], channels=shape[2])
    records: dict[str, Any] = {
        split: AnnotatedRecords(
            tuple(x.path for x in of_split.values()),
            tuple(x.note for x in of_split.values()),
            whole,
        )
        for split, of_split in splits.items()
    }
    return Opened(names, shape, records, files=files, labelled=False)


def _read_rows(table: Path, mistakes: Mistakes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row) of each."""
    if table.suffix.lower() == ".json":
        rows = read_json(table)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{table} is no list of objects with {', '.join(_COLUMNS)}")
        numbered = [(f"{table} entry {i}", row) for i, row in enumerate(rows)]
    else:
        try:
            with open(table, newline="", encoding="utf-8-sig") as file:
                numbered = [(f"{table}:{i}", row) for i, row in enumerate(csv.DictReader(file), 2)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{table} cannot be read: {error}") from error
    for line, row in numbered:
        missing = [column for column in _COLUMNS if row.get(column) in (None, "")]
        if missing:
            mistakes.add(f"{line} has no {', '.join(missing)}")
        else:
            yield line, row


def _read_box(
    row: Mapping[str, Any], names: tuple[str, ...], image: Path, size: tuple[int, int] | UserError
) -> BoxNote:
    if isinstance(size, UserError):
        raise size
    if str(row["class"]) not in names:
        raise ValueError(f"class {str(row['class'])!r} is not one of {', '.join(names)}")
    box = np.array([number(row, side) for side in _SIDES], np.float32)
    height, width = size
    shown = ", ".join(f"{x:g}" for x in box)
    if not (box[:2] < box[2:]).all():
        raise ValueError(f"the box {shown} of {image.name} has no area: left, top, right, bottom")
    if (box < -EDGE).any() or (box > np.array([width, height, width, height]) + EDGE).any():
        raise ValueError(f"the box {shown} is outside {image.name}, {width}x{height}")
    label = np.array([names.index(str(row["class"]))], np.int32)
    return BoxNote(box[None], label, np.ones(1, bool))
