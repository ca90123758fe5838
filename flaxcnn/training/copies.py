"""Copies of a run's checkpoints on a mirror: what one holds, and when it is whole.

    MIRROR/120/          what a resume from step 120 needs: the run's JSON files, the rows of
                         metrics.jsonl up to it, and checkpoint/, the checkpoint itself
    MIRROR/result-400/   of a finished run: result.json, pictures, predictions
    .../manifest.json    the SHA-256 of each file of the copy; written last: without it, or with
                         another file than it says, a copy is not whole and is never loaded

Nothing is renamed, so it needs no more of a file system than that what was written can be read.
TensorBoard's events are not copied: metrics.jsonl has what they show.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from flaxcnn.training.sessions import read_sessions
from flaxcnn.training.workdir import Workdir

CHECKPOINT = "checkpoint/"
MANIFEST = "manifest.json"
_RUN = ("config.json", "splits.json", "environment.json", "metrics.jsonl", "run.json")
_BESIDE = (
    "confusions.jsonl",
    "sinks.json",
)  # rows beyond a copy's step are dropped by who resumes from it
_NAME = re.compile(r"(result-)?\d{1,18}", re.ASCII)  # of a copy
_PIECE = 2**22  # bytes


class Storage(Protocol):
    """What is needed of a file system; paths are relative to the mirror, with slashes."""

    checks_itself: bool  # it has stored all of a file, or says that it has not

    def names(self, path: str = "") -> list[str]:
        """What there is in a folder; nothing if it is missing."""
        ...

    def read(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces. Raises FileNotFoundError."""
        ...

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Makes a file, and the folders that it lies in."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file or a folder with all in it, if it is there."""
        ...


class NotWholeError(Exception):
    """A copy that is not what its manifest says."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy that has its manifest."""

    name: str
    run: str  # which run it is of, see `identify`
    step: int
    files: dict[str, str]  # SHA-256 by path in the copy

    @property
    def is_result(self) -> bool:
        """Whether it is of a finished run's result, which has no checkpoint."""
        return is_result(self.name)


class Copies:
    """The copies in `storage`."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self.progress = time.monotonic()  # when a piece of a file was last read or written

    def names(self) -> list[str]:
        """Everything that is called as a copy, oldest first, whether it is whole or not."""
        return sorted(set(filter(_NAME.fullmatch, self._storage.names())), key=order)

    def find(self, names: Iterable[str]) -> list[Copy]:
        """Those that have a manifest."""
        return [copy for name in names if (copy := self.read_manifest(name)) is not None]

    def read_manifest(self, name: str) -> Copy | None:
        """None where it is missing (it was not finished, or the listing is stale) or torn."""
        try:
            content = json.loads(b"".join(self._storage.read(f"{name}/{MANIFEST}")))
            files = dict(content["files"])
            copy = Copy(name, str(content["run"]), int(content["step"]), files)
            sound = copy.step == order(name)[0] and all(map(_is_inside, files))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return copy if sound else None

    def write(self, name: str, run: str, staged: Path, before: Copy | None) -> bool:
        """Copies the files in `staged`; False if the copy `before`, of this name, is the same.

        The manifest is written when all of them read as they were written.
        """
        paths = (path for path in staged.rglob("*") if path.is_file())
        files = sorted(path.relative_to(staged).as_posix() for path in paths)
        hashes = {file: self._hash(_pieces(staged / file)) for file in files}
        # Another one is of a session that resumed from a checkpoint before, on another machine.
        if before is not None and _essence(before.files) == _essence(hashes):
            return False
        for file in files:
            self._storage.write(f"{name}/{file}", self._watched(_pieces(staged / file)))
        for file in () if self._storage.checks_itself else files:
            if self._hash(self._storage.read(f"{name}/{file}")) != hashes[file]:
                raise OSError(f"{name}/{file} does not read as it was written")
        manifest = {"version": 1, "run": run, "step": order(name)[0], "files": hashes}
        self._storage.write(f"{name}/{MANIFEST}", [json.dumps(manifest, indent=1).encode()])
        if self.read_manifest(name) is None:
            raise OSError(f"{name}/{MANIFEST} does not read as it was written")
        return True

    def download(self, copy: Copy, files: Sequence[str], into: Path) -> None:
        """Fetches these files of a copy. Raises NotWholeError if one has another SHA-256."""
        for file in files:
            target, digest = into / file, hashlib.sha256()
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as out:
                for piece in self._storage.read(f"{copy.name}/{file}"):
                    digest.update(piece)
                    out.write(piece)
            if digest.hexdigest() != copy.files[file]:
                raise NotWholeError(f"{file} has another SHA-256")

    def remove(self, name: str) -> None:
        """Removes a copy, its manifest first: what is left of it then counts for nothing."""
        self._storage.remove(f"{name}/{MANIFEST}")
        self._storage.remove(name)

    def _hash(self, pieces: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        for piece in self._watched(pieces):
            digest.update(piece)
        return digest.hexdigest()

    def _watched(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.progress = time.monotonic()
            yield piece


def order(name: str) -> tuple[int, bool]:
    """(step, whether it is a result) of a copy's name, by which they are sorted."""
    return int(name.removeprefix("result-")), is_result(name)


def is_result(name: str) -> bool:
    """Whether a copy of this name is of a finished run's result."""
    return name.startswith("result-")


def kept(folder: Workdir) -> list[str]:
    """Names of the copies that there should be of a run, the newest checkpoint first."""
    names = [str(step) for step in reversed(steps(folder))]
    if folder.has("result"):
        names.append(f"result-{folder.read('result')['steps']}")
    return names


def steps(folder: Workdir) -> list[int]:
    """The steps of a run's checkpoints, oldest first."""
    names = os.listdir(folder.checkpoints) if folder.checkpoints.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def identify(folder: Workdir) -> str:
    """Tells a run from others, of the same config too: its first session never changes."""
    first = json.dumps(read_sessions(folder)[:1], sort_keys=True)
    return hashlib.sha256(first.encode()).hexdigest()[:16]


def stage(folder: Workdir, name: str, staged: Path) -> bool:
    """Makes `staged` hold the files of the copy; the checkpoint's as links.

    So they stay when the run removes the checkpoint. False if it has removed it already.
    """
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    files = [*_RUN, *_BESIDE]
    if is_result(name):
        files += [path.name for path in folder.path.iterdir() if path.is_file()]
    else:
        source = folder.checkpoints / name
        try:
            _walk(source, staged / CHECKPOINT, _link)
        except FileNotFoundError:
            if source.exists():
                raise
            return False
    for file in set(files):
        if (folder.path / file).exists() and not file.startswith("."):
            shutil.copyfile(folder.path / file, staged / file)
    rows, step = staged / "metrics.jsonl", order(name)[0]
    if rows.exists():
        whole = [row for row in rows.read_text().splitlines(keepends=True) if row.endswith("\n")]
        rows.write_text("".join(row for row in whole if json.loads(row)["step"] <= step))
    return True


def _walk(source: Path, target: Path, copy: Callable[[Path, Path], None]) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _walk(path, target / path.name, copy)
        else:
            copy(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _essence(hashes: dict[str, str]) -> dict[str, str]:
    """The files by which two copies of a name differ; the others tell of sessions."""
    return {f: h for f, h in hashes.items() if f.startswith(CHECKPOINT) or f == "result.json"}


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts


def _pieces(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        while piece := opened.read(_PIECE):
            yield piece
