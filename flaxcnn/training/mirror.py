"""The mirror of a run, where its checkpoints outlive the machine: `flaxcnn train --mirror WHERE`.

The one file that knows about remote file systems, but for the Hugging Face hub (weights/hub.py).
What is new is copied in the background, and what fails is tried again with the next checkpoint:
training waits for nothing of it. `copies.py` says what a copy is, `restore.py` how a run starts
from one.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from flaxcnn.errors import UserError
from flaxcnn.training import copies
from flaxcnn.training.config import Config
from flaxcnn.training.copies import Copies
from flaxcnn.training.restore import reason, refuse_other, restore
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights import hub

PAUSE = 1.0  # seconds between the tries at the end, when no other checkpoint comes
STALLED = 120.0  # seconds without any progress after which nobody waits for a copy any longer
_TRIES = 3
_PIECE = 2**22  # bytes
_REMOTE = ("gs", "s3", "az")
_DRIVE = "/content/drive"  # where Colab mounts Google Drive


class PathStorage:
    """A folder, or a place in an object store, by `etils.epath`; see `copies.Storage`."""

    def __init__(self, where: str):
        scheme = re.match(r"([a-z][a-z0-9+.-]+)://", where)
        if scheme and scheme[1] not in _REMOTE:
            schemes = ", ".join(f"{name}://" for name in (*_REMOTE, "hf"))
            raise UserError(f"--mirror {where}: must be a folder or begin with {schemes}")
        if where.startswith(_DRIVE) and not os.path.ismount(_DRIVE):
            raise UserError(
                f"--mirror {where}: Google Drive is not mounted; in a cell before: from "
                f"google.colab import drive; drive.mount({_DRIVE!r})"
            )
        self.checks_itself = bool(scheme)
        self._root = epath.Path(where if scheme else os.path.abspath(os.path.expanduser(where)))

    def names(self, path: str = "") -> list[str]:
        """What there is in a folder; nothing if it is missing."""
        try:
            return [child.name for child in (self._root / path).iterdir()]
        except FileNotFoundError:
            return []

    def read(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces. Raises FileNotFoundError."""
        with (self._root / path).open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Makes a file, and the folders that it lies in."""
        target = self._root / path
        if not self.checks_itself:  # an object store has no folders
            target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for piece in pieces:
                file.write(piece)

    def remove(self, path: str) -> None:
        """Removes a file or a folder with all in it, if it is there."""
        target = self._root / path
        with contextlib.suppress(FileNotFoundError):
            (target.rmtree if target.is_dir() else target.unlink)()


class HubStorage:
    """A repository of the Hugging Face hub; see `copies.Storage`.

    A copy is one commit, made with its manifest, which is written last. The hub keeps what is
    removed in its history.
    """

    checks_itself = True

    def __init__(self, where: str):
        repository = hub.Repository.parse(where)
        if repository.revision != "main":
            raise UserError(f"--mirror {where}: must be hf://USER/REPOSITORY, without a revision")
        self._name, self._made = repository.name, False
        self._staged: dict[str, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def names(self, path: str = "") -> list[str]:
        """What there is in a folder; nothing if it is missing."""
        if not self._made:  # what may not be read is not told from what is not there
            hub.create(self._name, private=True)
            self._made = True
        return hub.list_folder(self._name, path)

    def read(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces. Raises FileNotFoundError."""
        return hub.stream(self._name, path)

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Keeps the file until the manifest comes, and commits all that it names with it."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
        target = Path(self._folder.name) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            for piece in pieces:
                file.write(piece)
        self._staged[path] = target
        name, _, file_name = path.rpartition("/")
        if file_name != copies.MANIFEST:
            return
        files = {path: file for path, file in self._staged.items() if path.startswith(f"{name}/")}
        try:
            hub.push(self._name, files, f"copy {name} of a run")
        finally:
            self._folder.cleanup()
            self._folder, self._staged = None, {}

    def remove(self, path: str) -> None:
        """Removes a folder with all in it, if it is there; its manifest goes with it."""
        name = path.rpartition("/")[2]
        if name != copies.MANIFEST and self.names(path):
            hub.push(self._name, {}, f"copy {name} is no longer kept", remove=[f"{path}/"])


class Mirror:
    """The copies in `where` of the run in `folder`; without `where` it does nothing.

    `restore` comes first, once the folder is locked; from then on `update` has what is new copied,
    and the end of the context waits for it.
    """

    def __init__(self, where: str, folder: Workdir, storage: copies.Storage | None = None):
        self._where, self._folder = where, folder
        kind = HubStorage if where.startswith(hub.SCHEME) else PathStorage
        self._copies = Copies(storage or kind(where)) if where else None
        self._staging = folder.path / ".mirror"
        self._done: set[str] = set()  # copies that this process has made, or found the same
        self._changed = threading.Condition()
        self._open = self._due = self._busy = False
        self._failure, self._longest, self._began = "", 0.0, 0.0
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        if where and "://" not in where:
            ours, theirs = folder.path.resolve(), Path(where).expanduser().resolve()
            if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
                raise UserError(f"--mirror {where}: the workdir and its mirror lie in one another")

    def restore(self, config: Config) -> None:
        """Brings the run in the folder to where the mirror has it, if that is further.

        Raises UserError, and see `restore.restore`.
        """
        if self._copies is None:
            return
        failure = restore(self._copies, self._where, self._folder, self._staging, config)
        self._say(failure)
        self._open = True

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exception: object) -> None:
        """Copies what has not been copied yet; waits as long as there is progress."""
        if not self._open:
            return
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(PAUSE)
            self.update()
            with self._changed:
                while self._is_working() and not self._is_stalled():
                    self._changed.wait(0.2)
            if self._is_working() or not self._failure:
                break
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if self._failure or self._is_working():
            print(
                f"WARNING: the mirror {self._where} lacks the last of this run "
                f"({self._failure or 'it takes too long'}); the same command completes it",
                file=sys.stderr,
            )
        elif self._done:
            newest = max(self._done, key=copies.order)
            print(f"mirrored to {self._where}, up to {newest}", flush=True)

    def update(self) -> None:
        """Says that something new may be there to be copied. Never waits, never raises."""
        if not self._open:
            return
        with self._changed:
            if self._is_stalled():
                self._say(f"no progress for {STALLED:.0f} s")
            self._due = True
            self._changed.notify_all()
            if not self._thread.is_alive():
                self._thread.start()

    def seconds(self) -> float:
        """How long copying one more checkpoint may take, as measured; 0 if nothing has been.

        A copy that is being made has to end first, and takes as long as it does already.
        """
        if not self._busy:
            return self._longest
        return 2 * max(self._longest, time.monotonic() - self._began)

    def _is_working(self) -> bool:
        return self._due or self._busy

    def _is_stalled(self) -> bool:
        assert self._copies is not None
        return self._busy and time.monotonic() - self._copies.progress > STALLED

    def _work(self) -> None:
        assert self._copies is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or not self._open)
                if not self._due:
                    return
                self._due, self._busy = False, True
                self._copies.progress = self._began = time.monotonic()
            failure = ""
            try:
                self._copy_what_is_new(self._copies)
            except Exception as error:  # each remote file system raises errors of its own
                failure = reason(error)
            shutil.rmtree(self._staging, ignore_errors=True)
            with self._changed:
                self._say(failure)
                self._busy = False
                self._changed.notify_all()

    def _say(self, failure: str) -> None:
        """One line when the mirror begins to fail, and one when it works again."""
        if failure and not self._failure:
            print(
                f"WARNING: the mirror {self._where} fails ({failure}): training continues; it is "
                "tried again with the next checkpoint",
                file=sys.stderr,
            )
        elif self._failure and not failure:
            print(f"the mirror {self._where} works again", file=sys.stderr)
        self._failure = failure

    def _copy_what_is_new(self, mirror: Copies) -> None:
        """Copies what the run keeps and the mirror lacks, then removes what the run has removed."""
        run, names = copies.identify(self._folder), mirror.names()
        if self._done and not names:
            raise OSError("what it held is gone")  # a mount that ended leaves an empty folder
        refuse_other(mirror.find(names), self._where, self._folder)
        self._done &= set(names)
        tried: set[str] = set()  # what the run has removed meanwhile is tried once
        while missing := [n for n in copies.kept(self._folder) if n not in self._done | tried]:
            name = missing[0]
            tried.add(name)
            self._began = time.monotonic()
            if copies.stage(self._folder, name, self._staging / name):
                before = mirror.read_manifest(name)
                if mirror.write(name, run, self._staging / name, before):
                    self._longest = max(self._longest, time.monotonic() - self._began)
                self._done.add(name)
        self._prune(mirror)

    def _prune(self, mirror: Copies) -> None:
        """Removes what the run has removed, once its newest checkpoint is whole in the mirror.

        What is further than the run stays: it could not be read when this session began.
        """
        kept = copies.kept(self._folder)
        if not kept or copies.is_result(kept[0]) or kept[0] not in self._done:
            return  # a finished run whose checkpoints were deleted to save space, too
        for name in mirror.names():
            if name not in kept and copies.order(name) <= copies.order(kept[0]):
                mirror.remove(name)
