"""One training process at a time in a folder, also where the file system has no locks.

`flock` is held by the process and goes with it. Some mounts and platforms lack it: there a file,
.heartbeat, says who trains (host, process, a random id) and when it was last alive. It is written
anew all the time; one that no longer is counts as left behind and is taken over.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from flaxcnn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT = 30.0  # seconds between two signs of life
STALE = 300.0  # seconds without one after which the owner is taken for dead; clocks may differ
SETTLE = 1.0  # seconds after which two that took a lock at once see which of them has it
_READS, _WRITING = 3, 0.02  # of a file that is torn, and seconds between: it may be being written
_BUSY = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_held: set[str] = set()  # ids of this process


class Lock(Protocol):
    """What holds a folder."""

    def check(self) -> None:
        """Raises UserError if another process has taken the folder over."""


class _Flock:
    """Nobody can take it over."""

    def check(self) -> None:
        pass


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Lock]:
    """Locks `folder`, which must exist. Raises UserError if another process trains in it."""
    with open(folder / ".lock", "w") as file:
        if _flock(file, folder):
            yield _Flock()
            return
    with _Heartbeat(folder) as heartbeat:
        yield heartbeat


def release(folder: Path) -> None:
    """Removes the files of a lock that is held, so that its folder can be removed, too."""
    for name in (".lock", ".heartbeat"):
        (folder / name).unlink(missing_ok=True)


def _flock(file: Any, folder: Path) -> bool:
    """Whether it is locked now; False where the file system or the platform has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno not in _BUSY:
            raise
        raise UserError(f"another process is training in {folder}") from error
    return True


class _Heartbeat:
    """The file `.heartbeat` in `folder`, refreshed in the background."""

    def __init__(self, folder: Path):
        self._folder, self._file = folder, folder / ".heartbeat"
        self._id, self._host = secrets.token_hex(8), socket.gethostname()
        self._ended = threading.Event()
        self._lost = ""  # to whom
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "_Heartbeat":
        self._refuse_or_take_over(self._read())
        self._write()
        time.sleep(SETTLE)
        owner = self._read()
        if owner is not None and owner["id"] != self._id:
            raise UserError(f"another process is training in {self._folder} ({_name(owner)})")
        _held.add(self._id)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        _held.discard(self._id)
        # Where the mount has gone it is stale in a few minutes.
        with contextlib.suppress(OSError):
            if not self._lost:
                self._file.unlink(missing_ok=True)

    def check(self) -> None:
        if self._lost:
            raise UserError(
                f"another process has taken {self._folder} over ({self._lost}), as it saw no sign "
                f"of life of this one for {STALE / 60:.0f} minutes: this one ends"
            )

    def _refuse_or_take_over(self, owner: dict[str, Any] | None) -> None:
        """Raises UserError if `owner` is alive; says so if it is taken for dead."""
        if owner is None:
            return
        silent = time.time() - owner["time"]
        here = owner["host"] == self._host
        if here and not _is_alive(owner):
            why = "it has ended"
        elif abs(silent) > STALE:
            why = f"it gave no sign of life for {abs(silent) / 60:.0f} minutes"
        else:
            raise UserError(
                f"another process is training in {self._folder} ({_name(owner)}, alive "
                f"{max(silent, 0):.0f} s ago); one that was killed is taken for dead after "
                f"{STALE / 60:.0f} minutes"
            )
        print(f"taking {self._folder} over from {_name(owner)}: {why}", file=sys.stderr)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a mount that is away may come back
                owner = self._read()
                if owner is not None and owner["id"] != self._id:
                    self._lost = _name(owner)
                    return
                self._write()

    def _read(self) -> dict[str, Any] | None:
        """Whose the file is; None if there is none, or it is torn: its owner died writing it."""
        for _ in range(_READS):
            try:
                with contextlib.suppress(ValueError, AttributeError):  # it is torn
                    owner = json.loads(self._file.read_text())
                    if {"host", "pid", "id", "time"} <= owner.keys():
                        return owner
            except FileNotFoundError:
                return None
            time.sleep(_WRITING)
        return None

    def _write(self) -> None:
        owner = {"host": self._host, "pid": os.getpid(), "id": self._id, "time": time.time()}
        self._file.write_text(json.dumps(owner))


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the process of this host that wrote `owner` runs."""
    if owner["pid"] == os.getpid():  # containers give each first process the same number
        return owner["id"] in _held
    if os.name == "nt":  # there os.kill ends what it asks about
        return True
    try:
        with contextlib.suppress(PermissionError):  # another user's, which runs
            os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    return True


def _name(owner: dict[str, Any]) -> str:
    return f"{owner['host']}, process {owner['pid']}"
