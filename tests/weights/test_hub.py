"""Files of the hub and of URLs: resumed, verified on every load, one process at a time.

The server is in this process, see tests/reference/hub_server.py; hashes are those of `hashlib`.
"""

import errno
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import huggingface_hub.constants
import pytest

from flaxcnn.errors import UserError
from flaxcnn.weights import downloads, hub

WEIGHTS = "model.safetensors"


def content(seed: int, size: int = 40_000) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    with hub_server.serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def flip(file: Path) -> None:
    """Changes one byte of what is in a cache."""
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.resolve().write_bytes(data)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_broken_connection_resumes(server, end):
    server.cut = end
    files = {f"part{n}.safetensors": content(n) for n in range(5)}
    server.commit("a/b", files)
    server.commit("plain/plain", files)
    for n, (name, data) in enumerate(files.items()):
        for source, file in (
            (f"{server.url}/plain/{name}#sha256={sha256(data)}", ""),
            ("hf://a/b", name),
        ):
            before = len(server.requests)
            server.cuts[name] = sorted(random.Random(n).sample(range(1, len(data)), 3))
            assert hub.fetch(source, file).read_bytes() == data
            assert not server.cuts[name]
            ranges = [h.get("Range") for m, _, h in server.requests[before:] if m == "GET"]
            assert len(set(ranges)) > 1  # it went on where it was cut, and did not begin again


def test_what_has_been_downloaded_is_kept_if_the_network_stays_away(server):
    data = content(0)
    server.commit("a/b", {WEIGHTS: data})
    server.cuts[WEIGHTS] = [30_000] * (downloads.TRIES + 1)
    with pytest.raises(UserError, match=r"hf://a/b/model.safetensors cannot be .*0.0 MB are here"):
        hub.fetch("hf://a/b", WEIGHTS)
    before = len(server.requests)
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == data
    assert server.requests[-1][2]["Range"] == "bytes=30000-"
    assert len(server.requests) == before + 3  # HEAD, GET, and the GET that it leads to


def test_what_is_there_of_another_file_is_not_continued(server):
    data = content(0)
    server.commit("a/b", {WEIGHTS: data})
    part = Path(os.environ["HF_HOME"], "hub/models--a--b/blobs", f"{sha256(data)}.part")
    part.parent.mkdir(parents=True)
    for left in (b"x" * 100, data + b"more", data):
        part.write_bytes(left)
        assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == data
        Path(part.parent, sha256(data)).unlink()
        assert not part.exists()
    server.ranges = False  # a server may send all of it
    part.write_bytes(data[:100])
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == data


def test_a_damaged_file_is_found_on_the_next_load(server, monkeypatch, capsys):
    data, config = content(0), b'{"architecture": "resnet50"}'
    server.commit("a/b", {WEIGHTS: data, "config.json": config})
    server.commit("plain/plain", {"w.h5": data})
    md5 = hashlib.md5(data).hexdigest()
    for source, file, right in (
        ("hf://a/b", WEIGHTS, data),
        ("hf://a/b", "config.json", config),
        (f"{server.url}/plain/w.h5#sha256={sha256(data)[:8]}", "", data),
        (f"{server.url}/plain/w.h5#md5={md5}", "", data),
        (f"{server.url}/plain/w.h5#sha256=", "", data),
    ):
        path = hub.fetch(source, file)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        requests = len(server.requests)
        assert hub.fetch(source, file) == path and path.read_bytes() == right
        flip(path)
        with pytest.raises(UserError, match=f"{path.name} is damaged"):
            hub.fetch(source, file)
        assert len(server.requests) == requests  # offline means offline
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert hub.fetch(source, file) == path and path.read_bytes() == right
        assert "is damaged: it is downloaded again" in capsys.readouterr().err


def test_a_wrong_hash_is_refused(server):
    data = content(0)
    server.commit("a/b", {WEIGHTS: data, "config.json": b"{}"})
    server.commit("plain/plain", {"w.pth": data})
    wrong = sha256(b"another")
    gets = server.count("GET")
    with pytest.raises(UserError, match=rf"SHA-256 is {sha256(data)}, and not {wrong}"):
        hub.fetch("hf://a/b", WEIGHTS, wrong)
    assert server.count("GET") <= gets + 1  # the client may ask something; the file is not fetched
    with pytest.raises(UserError, match="config.json is not used"):
        hub.fetch("hf://a/b", "config.json", wrong)
    for digits in (wrong, wrong[:8]):
        with pytest.raises(UserError, match=rf"SHA-256 is {sha256(data)}, and not {digits}$"):
            hub.fetch(f"{server.url}/plain/w.pth", sha256=digits)
    path = hub.fetch("hf://a/b", WEIGHTS, sha256(data)[:8])
    with pytest.raises(UserError, match=f"and not {wrong}"):  # nor out of the cache
        hub.fetch("hf://a/b", WEIGHTS, wrong)
    assert path.read_bytes() == data


def test_a_revision_is_the_same_ever_after(server, monkeypatch):
    first = server.commit("a/b", {WEIGHTS: content(1)})
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == content(1)
    second = server.commit("a/b", {WEIGHTS: content(2)})
    assert hub.fetch(f"hf://a/b@{second}", WEIGHTS).read_bytes() == content(2)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(f"hf://a/b@{first}", WEIGHTS).read_bytes() == content(1)
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == content(1)  # what main was
    with pytest.raises(UserError, match="hf://a/b@v2/model.safetensors is not in the cache"):
        hub.fetch("hf://a/b@v2", WEIGHTS)


def test_the_hubs_own_cache_is_used(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    server.commit("a/b", {WEIGHTS: content(1), "config.json": b"{}"})
    cache = Path(os.environ["HF_HOME"], "hub")
    ours = hub.fetch("hf://a/b", WEIGHTS)
    theirs = huggingface_hub.hf_hub_download(
        "a/b", WEIGHTS, cache_dir=cache, local_files_only=True, endpoint=server.url
    )
    assert Path(theirs) == ours
    assert huggingface_hub.scan_cache_dir(cache).warnings == []
    made = huggingface_hub.hf_hub_download(
        "a/b", "config.json", cache_dir=cache, endpoint=server.url
    )
    requests = len(server.requests)
    assert hub.fetch("hf://a/b", "config.json") == Path(made)
    assert len(server.requests) == requests


def test_without_symbolic_links_files_are_verified_too(server, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    server.commit("a/b", {WEIGHTS: content(1)})
    path = hub.fetch("hf://a/b", WEIGHTS)
    assert not path.is_symlink() and path.read_bytes() == content(1)
    flip(path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="is damaged: its hash is not"):
        hub.fetch("hf://a/b", WEIGHTS)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == content(1)


def test_a_full_disk_is_one_line(server, monkeypatch):
    server.commit("a/b", {WEIGHTS: content(1, 2_000_000)})
    usage = downloads.shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"^no space left on the disk of .*2.0 MB are needed"):
            hub.fetch("hf://a/b", WEIGHTS)

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, piece):
            if self.file.tell():
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(piece)

    def open_full(file, mode="r"):
        opened = open(file, mode)
        return Full(opened) if mode == "r+b" else opened

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "open", open_full, raising=False)
        with pytest.raises(UserError, match="^no space left on the disk") as error:
            hub.fetch("hf://a/b", WEIGHTS)
    assert "\n" not in str(error.value) and "it resumes" in str(error.value)
    assert hub.fetch("hf://a/b", WEIGHTS).read_bytes() == content(1, 2_000_000)
    assert server.requests[-1][2]["Range"] > "bytes=0-"  # what fitted


def test_mistakes_are_one_line(server, monkeypatch):
    server.commit("a/b", {WEIGHTS: content(1)})
    server.gated.add("a/gated")
    url = f"{server.url}/plain/w.pth"
    for source, file, message in (
        ("hf://a/b", "no.json", "hf://a/b/no.json: the repository has no such file"),
        ("hf://a/no", WEIGHTS, "hf://a/no/model.safetensors: there is no such repository, or"),
        ("hf://a/b@v9", WEIGHTS, "hf://a/b@v9/model.safetensors: the repository has no such rev"),
        ("hf://a/gated", WEIGHTS, "hf://a/gated/model.safetensors: its owner gives access on req"),
        ("hf://a", WEIGHTS, "hf://a: must be hf://USER/REPOSITORY or"),
        ("hf://a/b@", WEIGHTS, "hf://a/b@: must be hf://USER/REPOSITORY or"),
        ("hf://a/b", "../x", "hf://a/b: '../x' is no file of a repository"),
        ("ftp://x/y.pth", "", "ftp://x/y.pth: must begin with hf:// or https://"),
        ("http://x/y.pth#sha256=" + "0" * 64, "", "http://x/y.pth#sha256=0"),
        (url, "", f"{url}: needs its hash, "),
        (f"{url}#sha256=12", "", f"{url}: needs its hash, "),
        (f"{url}#md5=12345678", "", f"{url}: needs its hash, "),
        (f"{url}#sha256=12345678", "", f"{url}: the server answers 404 Not Found"),
    ):
        with pytest.raises(UserError) as error:
            hub.fetch(source, file)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="asking http://127.0.0.1:9 fails"):
        hub.fetch("hf://a/other", WEIGHTS)


def test_the_token_stays_with_the_hub(server):
    server.commit("a/b", {WEIGHTS: content(1)})
    hub.fetch("hf://a/b", WEIGHTS)
    sent = {path.split("/")[1]: h.get("Authorization") for _, path, h in server.requests}
    assert sent["a"] == "Bearer hf_secret" and sent["cdn"] is None


def test_what_is_in_the_cache_needs_no_client(server, monkeypatch):
    server.commit("a/b", {WEIGHTS: content(1)})
    path = hub.fetch("hf://a/b", WEIGHTS)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # to import it is an error
    assert hub.fetch("hf://a/b", WEIGHTS) == path


LOAD = """
import sys
from flaxcnn.weights import downloads, hub
downloads.PAUSE = 0.0
print(hub.fetch("hf://a/b", "model.safetensors"))
"""


def test_two_processes_at_once(server):
    server.commit("a/b", {WEIGHTS: content(1, 300_000)})
    server.cuts[WEIGHTS] = list(range(1000, 300_000, 40_000))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", LOAD], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    paths = {output.strip() for output, _ in outputs}
    assert len(paths) == 1 and Path(*paths).read_bytes() == content(1, 300_000)
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.part"))
