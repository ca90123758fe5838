"""What the sources `coco:`, `voc:` and `yolo:` share: images with any number of boxes."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data.annotated import AnnotatedRecords, BoxNote, Mistakes
from flaxcnn.data.annotation_files import EDGE, Noted, Splits, check_splits, probe_all, recorded
from flaxcnn.data.folder import find_shape
from flaxcnn.data.images import ImageFormat
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError


@dataclass(frozen=True)
class NotedObject:
    """A box as a file has it."""

    line: str  # where it stands
    label: int
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    crowd: bool = False
    area: float | None = None  # None: that of the box
    shares: bool = False  # the box is in shares of the image's sides


@dataclass(frozen=True)
class NotedImage:
    """An image and its objects as files have them."""

    line: str
    path: Path
    split: str  # or "all"
    objects: Sequence[NotedObject]
    size: tuple[int, int] | None = None  # (height, width), if it is noted


def open_objects(
    source: str,
    root: Path,
    names: tuple[str, ...],
    images: Sequence[NotedImage],
    image_format: ImageFormat,
    record: Record | None,
    mistakes: Mistakes,
) -> Opened:
    """The splits of these images, of `root`; boxes have room for as many as any image has.

    An image without objects is an example too. With the `record` of a run the set must be the one
    recorded. Raises UserError with a line for each mistake, up to 20.
    """
    if not names or not images:
        mistakes.tell()
        raise UserError(f"{source} holds no {'image' if names else 'object'}")
    sizes = probe_all([image.path for image in images])
    splits: Splits = {}
    empty: list[str] = []
    seen: set[Path] = set()
    for image in images:
        size = sizes[image.path]
        if isinstance(size, UserError):
            mistakes.add(f"{image.line}: {size}")
            continue
        if image.path in seen:
            mistakes.add(f"{image.line}: {image.path.name} has been noted before")
            continue
        seen.add(image.path)
        note = _note(image, size, mistakes, empty)
        name = _find_name(image.path, root)
        splits.setdefault(image.split, {})[name] = Noted(str(image.path), note)
    splits = check_splits(source, splits, mistakes)
    if empty:
        print(f"{source}: {len(empty)} boxes without an area are left out: {empty[0]}"
              f"{' and others' if len(empty) > 1 else ''}", file=sys.stderr)  # fmt: skip
    if not any(len(_boxes(x)) for x in next(iter(splits.values())).values()):
        raise UserError(f"{source}: the images to train on have no objects")
    splits, files = recorded(source, splits, names, record)
    shape = find_shape([x.path for s in splits.values() for x in s.values()], image_format)
    whole = image_format._replace(size=shape[:2], channels=shape[2])
    most = max(len(_boxes(x)) for of_split in splits.values() for x in of_split.values())
    records: dict[str, Any] = {
        split: AnnotatedRecords(
            tuple(x.path for x in of_split.values()),
            tuple(dataclasses.replace(x.note, most=most) for x in of_split.values()),  # type: ignore
            whole,
        )
        for split, of_split in splits.items()
    }
    return Opened(names, shape, records, files=files, labelled=False)


def _boxes(noted: Noted) -> np.ndarray:
    assert isinstance(noted.note, BoxNote)
    return noted.note.boxes


def _find_name(path: Path, root: Path) -> str:
    """Below the folder where that is possible: lists may name images elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _note(
    image: NotedImage, size: tuple[int, int], mistakes: Mistakes, empty: list[str]
) -> BoxNote:
    height, width = size
    if image.size not in (None, size):
        turned = ", turned as its camera noted (EXIF)" if image.size == size[::-1] else ""
        mistakes.add(
            f"{image.line}: {image.path.name} is {width}x{height}{turned}, and noted as "
            f"{image.size[1]}x{image.size[0]}"  # type: ignore[index]
        )
    kept: list[tuple[NotedObject, np.ndarray, float]] = []
    sides = np.array([width, height, width, height], np.float64)
    for thing in image.objects:
        box = np.array(thing.box, np.float64) * (sides if thing.shares else 1)
        shown = f"the box {', '.join(f'{x:g}' for x in box)} (left, top, right, bottom)"
        if not np.isfinite(box).all() or (box[:2] > box[2:]).any():
            mistakes.add(f"{thing.line}: {shown} of {image.path.name} ends before it begins")
        elif (box < -EDGE).any() or (box > sides + EDGE).any():
            mistakes.add(f"{thing.line}: {shown} is outside {image.path.name}, {width}x{height}")
        elif (box[:2] == box[2:]).any():  # official sets have some: COCO's training images
            empty.append(thing.line)
        else:
            whole = float((box[2:] - box[:2]).prod())
            kept.append((thing, box, whole if thing.area is None else thing.area))
    return BoxNote(
        np.array([box for _, box, _ in kept], np.float32).reshape(-1, 4),
        np.array([thing.label for thing, _, _ in kept], np.int32),
        np.ones(len(kept), bool),
        np.array([thing.crowd for thing, _, _ in kept], bool),
        np.array([area for _, _, area in kept], np.float32),
        least_side=0.0,  # however small, it is to be found; training drops it when it is moved
    )
