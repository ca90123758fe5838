"""Which files of a folder are images of which split and class; none is opened here."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flaxcnn.data.images import FILE_SUFFIXES
from flaxcnn.data.record import listing
from flaxcnn.data.splits import map_chunks
from flaxcnn.errors import UserError

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
_CLUTTER = ("__MACOSX",)  # what archives leave behind


@dataclass
class FolderFiles:
    """The images of a folder: names are paths below `root`, with "/" between folders."""

    root: Path
    divided: bool = False  # into folders of splits
    class_names: tuple[str, ...] = ()
    files: dict[str, dict[str, int]] = field(default_factory=dict)  # by split, or of "all": bytes
    notes: list[str] = field(default_factory=list)  # what was skipped, one line each

    def class_of(self, name: str) -> str:
        """The class of an image."""
        return name.split("/", 2)[self.divided]


def find_files(path: str) -> FolderFiles:
    """The images of a folder by split and class, sorted by name; see `folder.open_folder`.

    Raises UserError if classes are missing, empty or not the same in every split.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.source: there is no folder {root}; --config.data.source=folder:PATH says where "
            "your images are, in a folder for each class"
        )
    found = FolderFiles(root)
    folders = _find_splits(found)
    found.class_names = tuple(e.name for e in _folders_in(next(iter(folders.values()))))
    if len(found.class_names) < 2:
        only = root / found.class_names[0] if found.class_names and not found.divided else None
        hint = f"; is it folder:{only}?" if only and _folders_in(only) else ""
        raise UserError(
            f"data.source: {root} needs at least two folders of images, one per class, directly or "
            f"in train, validation and test; found {', '.join(found.class_names) or 'none'}{hint}"
        )
    alike = Counter(name.casefold() for name in found.class_names)
    if same := [name for name in found.class_names if alike[name.casefold()] > 1]:
        found.notes.append(f"{root}: classes {listing(same)} differ in case alone and stay apart")
    walk = _Walk(root)
    for split, folder in folders.items():
        found.files[split] = dict.fromkeys(walk.images(folder, found.class_names), 0)
    walk.count_loose([root, *folders.values()])
    found.notes += walk.notes()
    _measure(found)
    return found


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            visible = (e for e in entries if not e.name.startswith(".") and e.name not in _CLUTTER)
            return sorted(visible, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"data.source: {folder}: {error.strerror}") from error


def _folders_in(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a name is that of an image; a link to nowhere is one that cannot be read."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in FILE_SUFFIXES and (entry.is_file() or entry.is_symlink())


def _find_splits(found: FolderFiles) -> dict[str, Path]:
    """The folder of each split, train first; {"all": root} if root holds the classes."""
    root, children = found.root, _folders_in(found.root)
    named = [child for child in children if child.name.lower() in SPLIT_OF]
    if not any(_folders_in(child) for child in named):
        # A class may be called "train", but not all of them as splits are, nor two.
        splits = [c for c in children if c.name.lower().rstrip("0123456789_-") in SPLIT_OF]
        if len(splits) > 1 or (splits and splits == children):
            raise UserError(
                f"data.source: {splits[0].path} has no folder per class: labels are the names of "
                f"folders, as in {splits[0].path}/cat/1.jpg"
            )
        return {"all": root}
    found.divided = True
    folders: dict[str, Path] = {}
    for child in named:
        split = SPLIT_OF[child.name.lower()]
        if split in folders:
            raise UserError(
                f"data.source: {folders[split]} and {child.path} are both the {split} split"
            )
        if split == "train" or _folders_in(child):
            folders[split] = Path(child.path)
        elif split == "validation" and any(map(_is_image, _entries(child))):
            raise UserError(f"data.source: {child.path} has images, but no folder per class")
        else:
            found.notes.append(f"{child.path} has no folder per class: it is not measured")
    if "train" not in folders:
        raise UserError(f"data.source: {root} has no train folder beside {named[0].name}")
    for child in children:
        if child not in named:
            found.notes.append(f"{child.path} is neither train, validation nor test: skipped")
    return {name: folders[name] for name in ("train", "validation", "test") if name in folders}


class _Walk:
    """Goes through the folders of splits and counts what it does not take."""

    def __init__(self, root: Path):
        self._root = root
        self._aside: Counter[str] = Counter()  # by suffix
        self._loose = 0  # images outside the folders of classes
        self._nested: list[str] = []
        self._loops: list[str] = []

    def images(self, folder: Path, class_names: tuple[str, ...]) -> Iterator[str]:
        """The images in `folder`, class by class."""
        found = [entry.name for entry in _folders_in(folder)]
        if differing := sorted(set(found) ^ set(class_names)):
            raise UserError(
                f"data.source: {folder} must hold the classes of train; only one of the two has "
                f"{listing(differing)}"
            )
        prefix = "" if folder == self._root else f"{folder.name}/"
        for name in class_names:
            aside = self._aside.copy()
            images = list(self._below(prefix + name))
            if not images:
                others = _count_suffixes(self._aside - aside)
                raise UserError(
                    f"data.source: {folder / name} holds no image that can be read"
                    + (f", but {others}" if others else "")
                )
            yield from images

    def _below(self, name: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        status = os.stat(self._root / name)
        here = status.st_dev, status.st_ino
        if here in above:
            self._loops.append(name)
            return
        for entry in _entries(self._root / name):
            if entry.is_dir():
                if not above and SPLIT_OF.get(entry.name.lower()) == "train":
                    raise UserError(
                        f"data.source: {self._root / name} is divided into splits: they must stand "
                        f"above the classes, as {self._root}/train/{Path(name).name}"
                    )
                self._nested.append(f"{name}/{entry.name}")
                yield from self._below(f"{name}/{entry.name}", (*above, here))
            elif _is_image(entry):
                yield f"{name}/{entry.name}"
            else:
                self._aside[os.path.splitext(entry.name)[1].lower() or "without suffix"] += 1

    def count_loose(self, folders: list[Path]) -> None:
        """Counts the files that lie in folders of splits."""
        for folder in dict.fromkeys(folders):
            self._loose += sum(map(_is_image, _entries(folder)))

    def notes(self) -> list[str]:
        """What there is to say, one line each."""
        lines = []
        if self._aside:
            lines.append(f"skipped in {self._root}: {_count_suffixes(self._aside)}")
        if self._loose:
            lines.append(f"skipped in {self._root}: {self._loose} outside the classes' folders")
        if self._nested:
            folders = listing(self._nested)
            lines.append(f"{self._root}: images in {folders} are their outer folder's class")
        if self._loops:
            links = listing(self._loops)
            lines.append(f"{self._root}: {links} link to a folder above them: skipped")
        return lines


def _count_suffixes(counts: Counter[str]) -> str:
    return listing([f"{n} {suffix}" for suffix, n in counts.most_common()], 10)


def _measure(found: FolderFiles) -> None:
    """Fills in the sizes of the files; -1 where there is none, which reading will tell."""
    for split, files in found.files.items():
        names = list(files)

        def sizes(indices: np.ndarray, names: list[str] = names) -> list[int]:
            return [_size(f"{found.root}/{names[index]}") for index in indices]

        measured = map_chunks(sizes, len(names), f"sizes of {split} files")
        found.files[split] = dict(zip(names, [n for chunk in measured for n in chunk], strict=True))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
