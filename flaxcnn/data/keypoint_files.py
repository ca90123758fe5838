"""Images of bodies, or other things, with named points: COCO's keypoint JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.annotated import AnnotatedRecords, KeypointNote, Mistakes
from flaxcnn.data.annotation_files import (
    EDGE,
    Noted,
    Splits,
    check_splits,
    find_annotations,
    find_split,
    probe_all,
    read_json,
    recorded,
)
from flaxcnn.data.folder import find_shape
from flaxcnn.data.images import ImageFormat, fit_image, fit_matrix, read_image
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError

_NAMES = ("annotations.json", "keypoints.json")
_MARGIN = 1.25  # a person's crop by its box, in each direction (Xiao et al. 2018)
_SPLITS = ("train", "validation", "val", "test")

Pairs = tuple[tuple[int, int], ...]


def open_keypoints(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The bodies of COCO's keypoint JSON; those without splits are only "all".

    `path` is such a file, or a folder with annotations.json or with one file per split (train.json,
    val.json, test.json, or annotations.json in train/, validation/ and test/). A file has
    `categories` (one: keypoints, their names; skeleton, 1-based pairs; flip_pairs, 0-based pairs,
    if names do not tell left from right), `images` (id, file_name below the file's folder, split if
    wanted) and `annotations` (image_id, keypoints [x, y, v] of each name, v 0 unknown; bbox [left,
    top, width, height] if wanted). Each annotation with a known point is an example; one with a box
    is the part of the image around it, 1.25 as large in each direction. Or a file is
    {"joint_names": [...], "train": [{"file_name", "joints": [[x, y], ...]}, ...], "test": [...]}
    with images in train/ and test/, all of whose points are known.
    Names of points stand for classes. With the `record` of a run the set must be the one recorded.
    Raises UserError with a line for each mistake, up to 20.
    """
    source = f"keypoints:{path}"
    tables = find_annotations(path, _NAMES)
    mistakes = Mistakes(source)
    root = next(iter(tables.values())).parent if "all" in tables else Path(path).expanduser()
    body, found = None, []
    for split, table in tables.items():
        of_table, entries = _read_table(table, read_json(table), mistakes)
        if body is not None and of_table.names != body.names:
            mistakes.add(f"{table} has other keypoints than {next(iter(tables.values()))}")
        body = body or of_table
        found += [(split if split != "all" else entry.split, entry) for entry in entries]
    assert body is not None
    sizes = probe_all([entry.image for _, entry in found])
    splits: Splits = {}
    for split, entry in found:
        size = sizes[entry.image]
        if isinstance(size, UserError):
            mistakes.add(f"{entry.line}: {size}")
            continue
        noted = _note(entry, body, size, mistakes)
        if noted is None:
            continue
        of_split = splits.setdefault(split, {})
        name = entry.image.relative_to(root).as_posix()
        if name in of_split:  # another person of the image
            name = f"{name}#{entry.line.rsplit(' ', 1)[1]}"
        of_split[name] = noted
    splits = check_splits(source, splits, mistakes)
    splits, files = recorded(source, splits, body.names, record)
    shape = _find_shape(source, splits, image_format)
    whole = image_format._replace(size=shape[:2], channels=shape[2])
    records: dict[str, Any] = {
        split: PersonRecords(
            tuple(x.path for x in of_split.values()),
            tuple(x.note for x in of_split.values()),
            whole,
            crops=tuple(x.crop for x in of_split.values()),
        )
        for split, of_split in splits.items()
    }
    return Opened(body.names, shape, records, files=files, labelled=False)


@dataclass(frozen=True)
class PersonRecords(AnnotatedRecords):
    """Image files, or parts of them, with the points of one body in each."""

    crops: tuple[tuple[int, int, int, int] | None, ...] = ()

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, Any]]:
        """See `flaxcnn.data.splits.Records`."""
        size, resize = self.format.size, self.format.resize
        for index in indices:
            crop = self.crops[index]
            if crop is None:
                yield from super().read(np.array([index]))
                continue
            try:
                image = read_image(self.paths[index], (), resize, self.format.channels)
                left, top, right, bottom = crop
                part = (
                    image[top:bottom, left:right].squeeze(-1)
                    if image.shape[2] == 1
                    else (image[top:bottom, left:right])
                )
                matrix = fit_matrix(part.shape[:2], size, resize)
                target = self.annotations[index].fitted(matrix, part.shape[:2], (size[0], size[1]))
                yield fit_image(part, *self.format), target
            except UserError as error:
                yield error, None


@dataclass(frozen=True)
class _Body:
    names: tuple[str, ...]
    pairs: Pairs
    limbs: Pairs


@dataclass(frozen=True)
class _Entry:
    """An annotation before its image is known."""

    line: str  # where it stands
    image: Path
    split: str
    points: np.ndarray  # float32 [K, 2]
    visible: np.ndarray
    box: Sequence[float] | None = None


def find_pairs(names: Sequence[str]) -> Pairs:
    """The points that a mirror exchanges, by their names: left_hip and right_hip, l_hip and r_hip.

    The left one of each pair comes first.
    """
    lower = [name.lower() for name in names]
    pairs = []
    for i, name in enumerate(lower):
        for left, right in (("left", "right"), ("l_", "r_"), ("l-", "r-")):
            other = name.replace(left, right, 1)
            starts = name.startswith(left) or (left == "left" and left in name)
            if starts and other in lower:
                pairs.append((i, lower.index(other)))
                break
    return tuple(pairs)


_LIMBS = (  # of names without their side
    *(("ankle", "knee"), ("knee", "hip"), ("wrist", "elbow"), ("elbow", "shoulder")),
    *(("hip", "shoulder"), ("head_top", "neck"), ("shoulder", "neck")),
)


def find_limbs(names: Sequence[str]) -> Pairs:
    """The limbs of a body, by the names of its joints: of each side, and between head and neck."""

    def split(name: str) -> tuple[str, str]:
        for side, starts in (("l", ("left_", "l_")), ("r", ("right_", "r_"))):
            for start in starts:
                if name.lower().startswith(start):
                    return side, name.lower()[len(start) :]
        return "", name.lower()

    known = [split(name) for name in names]
    limbs = []
    for one, other in _LIMBS:
        for i, (side, part) in enumerate(known):
            if part != one:
                continue
            ends = [k for k, (s, p) in enumerate(known) if p == other and (s == side or not s)]
            limbs += [(i, k) for k in ends]
    return tuple(limbs)


def _read_table(table: Path, values: Any, mistakes: Mistakes) -> tuple[_Body, list[_Entry]]:
    if isinstance(values, dict) and "joint_names" in values:
        return _read_simple(table, values, mistakes)
    try:
        (category,) = [c for c in values["categories"] if c.get("keypoints")]
        names = tuple(str(name) for name in category["keypoints"])
        limbs = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
        pairs = tuple((int(a), int(b)) for a, b in category.get("flip_pairs") or ())
        body = _Body(names, pairs or find_pairs(names), limbs or find_limbs(names))
        images = {image["id"]: image for image in values["images"]}
        annotations = list(values["annotations"])
        if any(not 0 <= i < len(names) for pair in body.pairs + body.limbs for i in pair):
            raise ValueError("skeleton or flip_pairs name a point that there is not")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{table} is no keypoint JSON as COCO's, with one category that has keypoints, images "
            f"and annotations: {error!r}"
        ) from error
    entries = []
    for annotation in annotations:
        line = f"{table} annotation {annotation.get('id', '?')}"
        image = images.get(annotation.get("image_id"))
        if annotation.get("category_id", category.get("id")) != category.get("id"):
            known = any(c.get("id") == annotation["category_id"] for c in values["categories"])
            if not known:
                mistakes.add(f"{line}: there is no category {annotation['category_id']}")
            continue
        if image is None:
            mistakes.add(f"{line}: there is no image {annotation.get('image_id')}")
            continue
        numbers = np.asarray(annotation.get("keypoints", ()), np.float64).ravel()
        if len(numbers) != 3 * len(names):
            mistakes.add(_wrong_number(line, len(numbers) / 3, len(names)))
            continue
        points = numbers.reshape(-1, 3)
        if annotation.get("iscrowd") or not (points[:, 2] > 0).any():
            continue
        split = find_split(image.get("split"), line, mistakes)
        file = table.parent / str(image.get("file_name"))
        entries.append(
            _Entry(line, file, split, points[:, :2], points[:, 2] > 0, annotation.get("bbox"))
        )
    return body, entries


def _read_simple(
    table: Path, values: Mapping[str, Any], mistakes: Mistakes
) -> tuple[_Body, list[_Entry]]:
    names = tuple(str(name) for name in values["joint_names"])
    entries = []
    for split in _SPLITS:
        for i, entry in enumerate(values.get(split, ())):
            line = f"{table} {split} {i}"
            points = np.asarray(entry.get("joints", ()), np.float64).reshape(-1, 2)
            if len(points) != len(names):
                mistakes.add(_wrong_number(line, len(points), len(names)))
                continue
            file = table.parent / split / str(entry.get("file_name"))
            visible = np.ones(len(names), bool)
            entries.append(_Entry(line, file, find_split(split, line, mistakes), points, visible))
    return _Body(names, find_pairs(names), find_limbs(names)), entries


def _wrong_number(line: str, count: float, wanted: int) -> str:
    return f"{line} has {count:g} joints, and there are {wanted}"


def _note(entry: _Entry, body: _Body, size: tuple[int, int], mistakes: Mistakes) -> Noted | None:
    height, width = size
    points, known = entry.points, entry.visible
    shown = f"{entry.image.name}, {width}x{height}"
    outside = ((points < -EDGE) | (points > [width + EDGE, height + EDGE])).any(axis=1) & known
    for index in np.flatnonzero(outside | (known & ~np.isfinite(points).all(axis=1))):
        x, y = points[index]
        mistakes.add(f"{entry.line}: {body.names[index]} ({x:g}, {y:g}) is outside {shown}")
    crop, inside = None, np.ones(len(points), bool)
    if entry.box is not None and len(entry.box):
        left, top, wide, high = (float(x) for x in entry.box)
        beyond = left + wide > width + EDGE or top + high > height + EDGE
        if wide <= 0 or high <= 0 or left < -EDGE or top < -EDGE or beyond:
            mistakes.add(
                f"{entry.line}: the box {left:g}, {top:g}, {wide:g}, {high:g} (left, top, width, "
                f"height) is outside {shown}"
            )
            return None
        across, down = wide * (_MARGIN - 1) / 2, high * (_MARGIN - 1) / 2
        crop = (
            int(max(0, np.floor(left - across))),
            int(max(0, np.floor(top - down))),
            int(min(width, np.ceil(left + wide + across))),
            int(min(height, np.ceil(top + high + down))),
        )
        points = points - crop[:2]
        sides = np.array(crop[2:]) - crop[:2]
        inside = ((points >= 0) & (points <= sides)).all(axis=1)
    if outside.any():
        return None
    note = KeypointNote(points.astype(np.float32), known & inside, body.pairs, body.limbs)
    return Noted(str(entry.image), note, crop)


def _find_shape(source: str, splits: Splits, image_format: ImageFormat) -> tuple[int, int, int]:
    noted = [x for of_split in splits.values() for x in of_split.values()]
    if not image_format.size and any(x.crop for x in noted):
        raise UserError(
            f"{source}: data.image_size is needed, as the parts of images around bodies have "
            "different sizes"
        )
    return find_shape([x.path for x in noted], image_format)
