"""Images with boxes: text files as of Darknet and Ultralytics, a line for each object."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flaxcnn.data.annotated import Mistakes
from flaxcnn.data.folder_files import SPLIT_OF
from flaxcnn.data.images import FILE_SUFFIXES, ImageFormat
from flaxcnn.data.object_files import NotedImage, NotedObject, open_objects
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError


def open_yolo(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The images of a folder of text files; those without splits are only "all".

    `path` is a folder with data.yaml, or that file: `names` (a list, or a mapping from numbers),
    `train`, `val` and `test`, each one or several folders of images or text files that list
    images, below the file's folder or below its `path`. Or it holds classes.txt, a name a line, and
    images/ and labels/, directly, in train/, valid/ and test/, or with these folders in both.
    The labels of images/a/NAME.jpg are labels/a/NAME.txt: lines of a class's number and x, y of the
    centre, width and height in shares of the image, or x and y of a polygon's corners, of which the
    box around them is taken. An image without such a file has no objects.
    Raises UserError with a line for each mistake, up to 20.
    """
    given, source = Path(path).expanduser(), f"yolo:{path}"
    mistakes = Mistakes(source)
    file = given / "data.yaml" if given.is_dir() else given
    if file.is_file():
        root = file.parent
        names, folders = _read_yaml(file)
    elif (given / "classes.txt").is_file():
        root = given
        lines = (given / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
        names, folders = tuple(x.strip() for x in lines if x.strip()), _find_folders(given)
    else:
        raise UserError(
            f"data.source: {given} needs data.yaml, or classes.txt, images/ and labels/"
        )
    images = [
        _read_image(image, split, names, mistakes)
        for split, of_split in folders.items()
        for folder in of_split
        for image in _find_images(folder, mistakes)
    ]
    mistakes.tell()
    return open_objects(source, root, names, images, image_format, record, mistakes)


def _read_yaml(file: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        names = values["names"]
        if isinstance(names, Mapping):
            names = [names[i] for i in range(len(names))]
        names = tuple(str(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no data.yaml with names, train and val: {reason}") from error
    if values.get("nc", len(names)) != len(names):
        raise UserError(f"{file}: nc is {values['nc']}, and there are {len(names)} names")
    base = file.parent / str(values.get("path") or "")
    base = base if base.is_dir() else file.parent
    folders: dict[str, list[Path]] = {}
    for key in SPLIT_OF:
        given: Any = values.get(key) or []
        for entry in [given] if isinstance(given, str) else given:
            found = _resolve(base, str(entry))
            if found is None:
                raise UserError(f"{file}: {key} is {entry}, and there is no {base / str(entry)}")
            folders.setdefault(SPLIT_OF[key], []).append(found)
    if "train" not in folders:
        raise UserError(f"{file} has no train: a folder of images")
    return names, {s: folders[s] for s in ("train", "validation", "test") if s in folders}


def _resolve(base: Path, entry: str) -> Path | None:
    """Where a folder of data.yaml is; of "../train/images" Roboflow means one beside the file."""
    candidates = [base / entry, base / entry.removeprefix("../")]
    found = next((path for path in candidates if path.exists()), None)
    if found is not None and found.is_dir() and (found / "images").is_dir():
        return found / "images"
    return found


def _find_folders(root: Path) -> dict[str, list[Path]]:
    divided: dict[str, list[Path]] = {}
    for name, split in SPLIT_OF.items():
        for folder in (root / name / "images", root / "images" / name):
            if folder.is_dir():
                divided.setdefault(split, []).append(folder)
    if divided and "train" not in divided:
        raise UserError(f"data.source: {root} has no images to train on")
    if not divided and not (root / "images").is_dir():
        raise UserError(f"data.source: there is no folder {root / 'images'}")
    return divided or {"all": [root / "images"]}


def _find_images(folder: Path, mistakes: Mistakes) -> Iterator[Path]:
    """The images below a folder, or of a list; labels without image are mistakes."""
    if folder.is_file():
        for entry in folder.read_text().split("\n"):
            if entry.strip():
                yield folder.parent / entry.strip()
        return
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FILE_SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        mistakes.add(f"{folder} holds no image")
        return
    labels = find_labels(found[0]).parent
    if folder == found[0].parent and labels != folder and labels.is_dir():
        stems = {path.stem for path in found}
        for text in sorted(labels.glob("*.txt")):
            if text.stem not in stems and text.name != "classes.txt":
                mistakes.add(f"{text} has no image in {folder}")
    yield from found


def find_labels(image: Path) -> Path:
    """The text file of an image: the last folder images of its path is labels there."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_image(image: Path, split: str, names: tuple[str, ...], mistakes: Mistakes) -> NotedImage:
    file, objects = find_labels(image), []
    if file.is_file():
        for number, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if text.strip():
                try:
                    label, box = _read_line(text, names)
                except ValueError as error:
                    mistakes.add(f"{file}:{number}: {error}")
                    continue
                objects.append(NotedObject(f"{file}:{number}", label, box, shares=True))
    return NotedImage(str(image), image, split, objects)


def _read_line(text: str, names: tuple[str, ...]) -> tuple[int, tuple[float, float, float, float]]:
    """The label and the box, in shares. Raises ValueError."""
    words = text.split()
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        label, numbers = -1, []
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not polygon:
        raise ValueError(
            f"must be a class's number, and x, y, width and height of a box, got {text.strip()!r}"
        )
    if not 0 <= label < len(names):
        raise ValueError(f"class {label} is not one of 0..{len(names) - 1}")
    if polygon:
        return label, (*(min(numbers[i::2]) for i in (0, 1)), *(max(numbers[i::2]) for i in (0, 1)))  # type: ignore[return-value]
    x, y, width, height = numbers
    return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
