"""What a run records of its data set, and the refusal of a set that is no longer that one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flaxcnn.errors import UserError

Files = Mapping[str, Mapping[str, int]]
"""By split, in its order, each image's path below the folder and its size in bytes; "skipped" holds
those that were skipped. {} where a set is no folder."""


@dataclass(frozen=True)
class Record:
    """The data set of a run as it was at the run's start."""

    class_names: tuple[str, ...]
    version: str  # `hash_files`, or what its publisher calls it; "" in runs that recorded none
    files: Files


def hash_files(files: Files) -> str:
    """SHA-256 of the names, sizes, order and splits of a folder's images, in hexadecimal."""
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def refuse(source: str, changes: Sequence[str]) -> UserError:
    """The error that says what of the data set has changed."""
    return UserError(f"{source} is not what this run was trained on: {'; '.join(changes)}")


def check_classes(source: str, before: Sequence[str], after: Sequence[str]) -> None:
    """Raises UserError, naming up to five classes, unless both are the same, in the same order."""
    if list(before) == list(after):
        return
    changes = [
        f"class{'es' if len(names) > 1 else ''} {listing(names)} {verb}"
        for names, verb in (
            ([repr(name) for name in after if name not in before], "new"),
            ([repr(name) for name in before if name not in after], "gone"),
        )
        if names
        for verb in [f"{'are' if len(names) > 1 else 'is'} {verb}"]
    ]
    raise refuse(source, changes or ["its classes are in another order"])


def check_files(source: str, record: Files, found: Mapping[str, int]) -> list[str]:
    """The names of the files of a folder that have been added since it was recorded.

    Raises UserError if one is gone or has another size.
    """
    changes = []
    for split, files in record.items():
        if split == "skipped":
            continue
        gone = [name for name in files if name not in found]
        if gone:
            changes.append(f"{_count(gone)} fewer in {split}, first missing: {gone[0]}")
        other = [name for name, size in files.items() if found.get(name, size) != size]
        if other:
            sizes = f"{found[other[0]]} bytes, it had {files[other[0]]}"
            changes.append(f"{_count(other)} changed in {split}, first: {other[0]} has {sizes}")
    if changes:
        raise refuse(source, changes)
    known = {name for files in record.values() for name in files}
    return [name for name in found if name not in known]


def listing(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"
