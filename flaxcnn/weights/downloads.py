"""Downloads that resume where they were cut, and are used only if their hash is what it must be."""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from flaxcnn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the second try; then 2, 3, ...
_PIECE = 2**20  # bytes
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # what a server may answer otherwise later
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Hash(NamedTuple):
    """What the content of a file must have.

    `kind` is "sha256", "md5" or "git" (SHA-1 of a header with the size, and the content).
    """

    kind: str
    digits: str  # hexadecimal; the first ones will do

    def accepts(self, file: Path) -> bool:
        """Whether the file is the one."""
        return hash_file(file, self.kind).startswith(self.digits)


class Remote(NamedTuple):
    """Where a file is."""

    url: str
    name: str  # in messages
    size: int | None = None  # bytes, if it is known
    headers: Mapping[str, str] = {}


def hash_file(file: Path, kind: str = "sha256") -> str:
    """The hash of a file in hexadecimal digits, `kind` as in `Hash`."""
    start = hashlib.sha1(b"blob %d\0" % file.stat().st_size) if kind == "git" else hashlib.new(kind)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, lambda: start).hexdigest()


def obtain(remote: Remote, expected: Hash, target: Path) -> None:
    """Makes `target` the remote file, unless another process does so at the same time.

    What there is of it is in `target`.part, which stays if this ends too early. Raises UserError:
    the server does not give it, the connection breaks again and again, the disk is full, or the
    content has another hash.
    """
    part = target.with_name(f"{target.name}.part")
    with _full_disk(remote, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, remote.name):
            if target.exists() and expected.accepts(target):
                part.unlink()
                return
            resumed = part.stat().st_size
            if not (resumed and expected.accepts(part)):
                download(remote, part)
            if resumed and not expected.accepts(part):  # it began as something else
                part.write_bytes(b"")
                download(remote, part)
            if not expected.accepts(part):
                found = hash_file(part, expected.kind)
                part.unlink()
                kind = {"sha256": "SHA-256", "md5": "MD5", "git": "git hash"}[expected.kind]
                raise UserError(
                    f"{remote.name} is not used: its {kind} is {found}, and not {expected.digits}"
                )
            os.replace(part, target)


def download(remote: Remote, part: Path) -> None:
    """Continues `part`, which exists, until it is whole. Raises UserError, see `obtain`."""
    failures = 0
    while True:
        before = part.stat().st_size
        try:
            return _continue(remote, part, before)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            error.close()
            if error.code == 416 and before:  # it has not as much as is here
                part.write_bytes(b"")
            elif error.code not in _TEMPORARY:
                raise UserError(f"{remote.name}: the server answers {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if part.stat().st_size > before else failures + 1
        if failures == TRIES:
            have = f"{part.stat().st_size / 1e6:.1f} MB are here: the same command resumes"
            raise UserError(f"{remote.name} cannot be downloaded ({reason}); {have}")
        time.sleep(PAUSE * max(failures, 1))


def _continue(remote: Remote, part: Path, start: int) -> None:
    """One connection: the rest of the file from byte `start` on."""
    if start and start == remote.size:
        return
    request = urllib.request.Request(remote.url)
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)  # a token is not for where that leads
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        if response.status == 206:
            begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if begins is None or int(begins[1]) != start:
                raise OSError("the server sends another part of the file than it was asked for")
        else:
            start = 0
        total = start + int(length) if length else remote.size
        if total is not None and remote.size not in (None, total):
            raise OSError(f"the server sends {total} bytes instead of {remote.size}")
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(errno.ENOSPC, f"{(total - start) / 1e6:.1f} MB are needed")
        bar = tqdm(
            total=total, initial=start, desc=remote.name, unit="B", unit_scale=True, disable=None
        )
        with open(part, "r+b") as out, bar:
            out.truncate(start)
            out.seek(start)
            while piece := response.read1(_PIECE):  # what has come: `read` loses it in an error
                out.write(piece)
                out.flush()
                bar.update(len(piece))
        if total is not None and part.stat().st_size < total:
            raise OSError("the connection ended early")


@contextlib.contextmanager
def _full_disk(remote: Remote, part: Path) -> Iterator[None]:
    """Says in one line that there is no space, or that the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            rest = f"{error.strerror}; " if "needed" in (error.strerror or "") else ""
            raise UserError(
                f"no space left on the disk of {part.parent} for {remote.name}: {rest}"
                "free some and run the same command again: it resumes"
            ) from error
        raise UserError(f"cannot write to {part.parent}: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(part: Path, name: str) -> Iterator[None]:
    """Makes `part` and locks it, so that one process at a time continues it.

    Where the file system has no locks, two may: what they make then has another hash.
    """
    while True:
        with open(part, "ab") as file:
            _flock(file.fileno(), name)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
            except FileNotFoundError:  # the one before has completed it
                same = False
            if same:
                yield
                return


def _flock(file: int, name: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process, which downloads {name}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # no locks here
        pass
