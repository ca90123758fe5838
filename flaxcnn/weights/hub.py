"""Files of pretrained weights from the Hugging Face hub and from URLs, verified on every load.

The one file that knows `huggingface_hub` (0.34 to 2), imported when something is not in a cache or
a repository is written. The client compares sizes, not hashes (huggingface_hub#2364), and loses
what it has of a file when a connection ends for good: it says where a file is and what its hash
must be, and downloads.py does the rest. Files of the hub are kept in the hub's own cache, in the
layout that its documentation describes: other programs find them, and theirs are found here.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flaxcnn.errors import UserError
from flaxcnn.weights import downloads
from flaxcnn.weights.downloads import Hash, Remote, hash_file, obtain

SCHEME = "hf://"
_DIGITS = {"sha256": 64, "md5": 32}
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_URL = re.compile(r"https://|http://(127\.0\.0\.1|localhost)[:/]")
_TRIES = 3  # of asking the hub
_T = TypeVar("_T")


class Repository(NamedTuple):
    """A repository of models on the hub, at a branch, tag or commit."""

    name: str  # "user/repo"
    revision: str = "main"

    @classmethod
    def parse(cls, source: str) -> "Repository":
        """Reads "hf://user/repo[@revision]". Raises UserError."""
        name, at, revision = source.removeprefix(SCHEME).partition("@")
        if not _NAME.fullmatch(name) or (at and not revision) or ".." in source:
            raise UserError(
                f"{source}: must be hf://USER/REPOSITORY or hf://USER/REPOSITORY@REVISION"
            )
        return cls(name, revision or "main")

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision != "main" else "")


def fetch(source: str, file: str = "", sha256: str = "") -> Path:
    """Finds a file in a cache, or downloads it, and verifies its content.

    Args:
      source: "hf://user/repo[@revision]", or a URL, which may end in "#sha256=..." or "#md5=...".
      file: its path in the repository.
      sha256: 64 digits, or the first 8 or more. Of a file on the hub it may be left out: the hub
        says it when the file is downloaded. A URL must have a hash; "#sha256=" without digits
        accepts what is downloaded first, and from then on nothing else.

    Nothing is asked of the network where the cache has the file: a branch is what it was when it
    was first asked for. Raises UserError in one line.
    """
    if not source.startswith(SCHEME):
        return _fetch_url(source, sha256)
    if not file or ".." in Path(file).parts or file.startswith("/"):
        raise UserError(f"{source}: {file!r} is no file of a repository")
    return _fetch_from_hub(Repository.parse(source), file, sha256)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE, says to leave the network alone."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "on", "yes", "true") for name in names)


def _fetch_from_hub(repository: Repository, file: str, sha256: str) -> Path:
    what = f"{repository}/{file}"
    cache = _cache_folder() / f"models--{repository.name.replace('/', '--')}"
    commit = _find_commit(cache, repository.revision)
    cached = cache / "snapshots" / commit / file
    if commit and cached.exists():
        expected = _read_expected(cache, commit, file) or (sha256 and Hash("sha256", sha256))
        if expected and expected.accepts(cached):
            return _check(what, cached, sha256)
        if is_offline():
            reason = f"is damaged: its hash is not {expected.digits}" if expected else "has no hash"
            raise UserError(f"{cached} {reason}; load it once with a network")
        if expected:
            print(f"WARNING: {cached} is damaged: it is downloaded again", file=sys.stderr)
            cached.resolve().unlink()
    elif is_offline():
        raise UserError(f"{what} is not in the cache {cache.parent}, and HF_HUB_OFFLINE is set")
    else:
        commit = ""
    return _check(what, _download(repository, commit, file, sha256, cache), sha256)


def _check(what: str, file: Path, sha256: str) -> Path:
    """Refuses a file that is what the hub has, but not what is asked for."""
    if sha256 and not (found := hash_file(file)).startswith(sha256):
        raise UserError(f"{what} is not used: its SHA-256 is {found}, and not {sha256}")
    return file


def _download(repository: Repository, commit: str, file: str, sha256: str, cache: Path) -> Path:
    """Brings a file of the repository into the cache; at `commit`, if that is known."""
    what, hub = f"{repository}/{file}", _client()
    url = hub.hf_hub_url(
        repository.name, file, revision=commit or repository.revision, endpoint=_endpoint()
    )
    found = _ask(repository, what, lambda: hub.get_hf_file_metadata(url, timeout=downloads.TIMEOUT))
    etag, commit = found.etag or "", found.commit_hash or commit
    expected = _read_etag(etag)
    if expected is None or not commit:
        raise UserError(f"{what}: {_endpoint()} does not say its hash and its commit")
    if sha256 and expected.kind == "sha256" and not etag.startswith(sha256):
        raise UserError(f"{what} is not used: its SHA-256 is {etag}, and not {sha256}")
    blob, pointer = cache / "blobs" / etag, cache / "snapshots" / commit / file
    obtain(Remote(url, what, found.size, hub.utils.build_hf_headers()), expected, blob)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)
        _link(blob, pointer, cache / ".etags" / commit / file)
    if repository.revision != commit:
        _write(cache / "refs" / repository.revision, commit)
    return pointer


def _find_commit(cache: Path, revision: str) -> str:
    """The commit that a branch or tag was when it was asked for; "" if it never was."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return (cache / "refs" / revision).read_text().strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""


def _read_expected(cache: Path, commit: str, file: str) -> Hash | None:
    """The hash of a file in the cache: the blob's name, or what `_link` has written down."""
    pointer = cache / "snapshots" / commit / file
    if pointer.is_symlink():
        return _read_etag(os.path.basename(os.readlink(pointer)))
    record = cache / ".etags" / commit / file
    return _read_etag(record.read_text()) if record.exists() else None


def _read_etag(etag: str) -> Hash | None:
    """Of large files it is their SHA-256, of others git's hash."""
    kinds = {64: "sha256", 40: "git"}
    sound = re.fullmatch("[0-9a-f]+", etag) and len(etag) in kinds
    return Hash(kinds[len(etag)], etag) if sound else None


def _link(blob: Path, pointer: Path, record: Path) -> None:
    """Makes `pointer` lead to the blob; without symbolic links a copy, and a record of its hash."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(FileExistsError):  # another process does the same
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        _write(record, blob.name)
        shutil.copyfile(blob, pointer)


def _write(file: Path, text: str) -> None:
    """Writes a small file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as out:
        out.write(text)
    os.replace(out.name, file)


def _fetch_url(source: str, sha256: str) -> Path:
    url, _, fragment = source.partition("#")
    kind, equals, digits = fragment.partition("=")
    if not _URL.match(url):
        raise UserError(f"{source}: must begin with {SCHEME} or https://")
    if sha256:
        kind, equals, digits = "sha256", "=", sha256
    length = _DIGITS.get(kind, 0)
    short = kind == "sha256" and len(digits) >= 8  # the first ones
    if (
        not equals
        or not re.fullmatch(f"[0-9a-f]{{0,{length}}}", digits)
        or (digits and len(digits) != length and not short)
    ):
        raise UserError(f"{url}: needs its hash, {url}#sha256= and 64 digits, or the first 8")
    expected = Hash(kind, digits)
    key = hashlib.sha256(f"{url}#{kind}={digits}".encode()).hexdigest()[:16]
    file = _url_folder() / key / (os.path.basename(url.partition("?")[0]) or "file")
    record = file.with_name(f"{file.name}.sha256")
    if file.exists():
        known = Hash("sha256", record.read_text()) if record.exists() else expected
        if known.digits and known.accepts(file):
            return file
        if is_offline():
            raise UserError(f"{file} is damaged; without a network it cannot be downloaded again")
        print(f"WARNING: {file} is damaged: it is downloaded again", file=sys.stderr)
        expected = known if known.digits else expected
        file.unlink()
    if is_offline():
        raise UserError(f"{url} is not in the cache {_url_folder()}, and HF_HUB_OFFLINE is set")
    obtain(Remote(url, url), expected, file)
    _write(record, hash_file(file))
    return file


def _client() -> Any:
    """The library; what it reads of the environment when it is imported, it reads now."""
    import huggingface_hub
    import huggingface_hub.errors
    import huggingface_hub.utils

    return huggingface_hub


def _cache_folder() -> Path:
    """Where the hub's clients keep files: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub."""
    environ = os.environ
    if folder := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = environ.get("HF_HOME") or user_cache() / "huggingface"
    return Path(home).expanduser() / "hub"


def _url_folder() -> Path:
    return user_cache() / "flaxcnn" / "weights"


def user_cache() -> Path:
    """Where programs keep what can be made again: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _ask(repository: Repository, what: str, call: Callable[[], _T]) -> _T:
    """The hub's answer. Raises UserError for what the user has to change, or if there is none."""
    errors = _client().errors
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except errors.GatedRepoError as error:
            page = f"{_endpoint()}/{repository.name}"
            raise UserError(f"{what}: its owner gives access on request: see {page}") from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{what}: there is no such repository, or it is private (set HF_TOKEN, or log in: "
                "hf auth login)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{what}: the repository has no such revision") from error
        except errors.EntryNotFoundError as error:
            raise UserError(f"{what}: the repository has no such file") from error
        except Exception as error:  # each version of the client has another library for HTTP
            status = getattr(getattr(error, "response", None), "status_code", None)
            if attempt == _TRIES or (status and status < 500 and status != 429):
                reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
                raise UserError(f"{what}: asking {_endpoint()} fails ({reason})") from error
            time.sleep(downloads.PAUSE)
    raise AssertionError("unreachable")


def create(repository: str, *, private: bool = False) -> None:
    """Makes a repository, if it does not exist. Raises UserError where that is not allowed."""
    found = Repository.parse(f"{SCHEME}{repository}")
    if is_offline():
        raise UserError(f"{found} cannot be written: HF_HUB_OFFLINE is set")
    api = _client().HfApi(endpoint=_endpoint())
    _ask(found, str(found), lambda: api.create_repo(found.name, private=private, exist_ok=True))


def push(
    repository: str, files: Mapping[str, Path | bytes], message: str, remove: Sequence[str] = ()
) -> str:
    """Writes files, by path in the repository, and removes others (folders end in /): one commit.

    Returns the commit's page. Raises UserError.
    """
    hub, found = _client(), Repository.parse(f"{SCHEME}{repository}")
    api = hub.HfApi(endpoint=_endpoint())

    def commit() -> str:
        operations = [
            hub.CommitOperationAdd(path, str(file) if isinstance(file, Path) else file)
            for path, file in files.items()
        ]
        operations += [hub.CommitOperationDelete(path) for path in remove]
        return api.create_commit(found.name, operations, commit_message=message).commit_url

    return _ask(found, str(found), commit)


def list_folder(repository: str, path: str = "") -> list[str]:
    """Names of the files and folders in a folder of a repository; none where it is missing."""
    hub, found = _client(), Repository.parse(f"{SCHEME}{repository}")
    api = hub.HfApi(endpoint=_endpoint())

    def find() -> list[str]:
        try:
            entries = list(api.list_repo_tree(found.name, path or None))
        except hub.errors.EntryNotFoundError:
            return []
        return [entry.path.rpartition("/")[2] for entry in entries]

    return _ask(found, str(found), find)


def stream(repository: str, file: str) -> Iterator[bytes]:
    """The content of a file as it is on the hub now, in pieces; not kept in the cache.

    Raises FileNotFoundError.
    """
    hub, found = _client(), Repository.parse(f"{SCHEME}{repository}")
    url = hub.hf_hub_url(found.name, file, endpoint=_endpoint())
    try:
        size = hub.get_hf_file_metadata(url, timeout=downloads.TIMEOUT).size
    except hub.errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{found}/{file}") from error
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        part.touch()
        remote = Remote(url, f"{found}/{file}", size, hub.utils.build_hf_headers())
        downloads.download(remote, part)
        with open(part, "rb") as opened:
            while piece := opened.read(2**22):
                yield piece
