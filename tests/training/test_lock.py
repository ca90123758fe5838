"""Folders on file systems without locks, and without a rename that replaces."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import Config, lock
from flaxcnn.training.workdir import Workdir


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, None])
def folder(request, tmp_path, monkeypatch):
    """A folder, as on Google Drive, that cannot be locked; None: no platform's can."""

    def flock(file, operation):
        raise OSError(request.param, "no locks")

    if request.param is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    return tmp_path / "My Drive" / "runs [lr=0.1]"


def owner(folder, **changes):
    """A heartbeat that another machine has left behind just now."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"host": "other", "pid": 4242, "id": "x", "time": time.time()} | changes
    (folder / ".heartbeat").write_text(json.dumps(content))


def test_two_runs_cannot_share_a_folder_without_flock(folder):
    with Workdir(folder).claim(Config()):
        (folder / "run.json").write_text("{}")
        assert json.loads((folder / ".heartbeat").read_text())["pid"] == os.getpid()
        with pytest.raises(
            UserError, match=r"another process is training in .*lr=0.1\] \(.* 0 s ago"
        ):
            with lock.hold(folder):
                pass
    assert not (folder / ".heartbeat").exists()
    with lock.hold(folder):
        pass  # the lock went with the first run


no_locks = pytest.mark.parametrize("folder", [errno.ENOLCK], indirect=True)


@no_locks
def test_a_run_that_fails_before_it_begins_leaves_nothing(folder):
    with pytest.raises(ZeroDivisionError), Workdir(folder).claim(Config()):
        1 / 0  # noqa: B018
    assert not folder.exists()


@no_locks
def test_another_machine_that_is_alive_is_not_disturbed(folder):
    owner(folder, time=time.time() - lock.STALE / 2)
    with pytest.raises(UserError, match="other, process 4242, alive 150 s ago.* after 5 minutes"):
        with lock.hold(folder):
            pass
    assert json.loads((folder / ".heartbeat").read_text())["id"] == "x"


@no_locks
def test_one_that_gives_no_sign_of_life_is_taken_over_with_a_line(folder, capsys):
    owner(folder, time=time.time() - 10 * 60)
    with lock.hold(folder) as held:
        held.check()
    assert "over from other, process 4242: it gave no sign of life for 10 minutes" in (
        capsys.readouterr().err
    )


@no_locks
def test_a_killed_process_of_this_host_is_taken_over_at_once(folder, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):  # the second as in a container that was started again
        owner(folder, host=lock.socket.gethostname(), pid=pid)
        with lock.hold(folder):
            pass
        assert f"process {pid}: it has ended" in capsys.readouterr().err
    owner(folder, host=lock.socket.gethostname(), pid=os.getppid())
    with pytest.raises(UserError, match="another process"), lock.hold(folder):
        pass


@no_locks
@pytest.mark.parametrize("torn", ["", '{"host": "other", "pi', "[]", '{"host": "other"}'])
def test_a_torn_heartbeat_is_nobodys(folder, torn):
    folder.mkdir(parents=True)
    (folder / ".heartbeat").write_text(torn)
    with lock.hold(folder):
        assert json.loads((folder / ".heartbeat").read_text())["pid"] == os.getpid()


@no_locks
def test_it_is_refreshed_and_notices_that_it_was_taken_over(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    folder.mkdir(parents=True)
    file = folder / ".heartbeat"
    with lock.hold(folder) as held:
        first = file.read_text()
        wait_until(lambda: file.read_text() not in (first, ""))
        held.check()
        owner(folder)
        wait_until(lambda: not any(t.name == "heartbeat" for t in threading.enumerate()))
        with pytest.raises(UserError, match="another process has taken .* over .other, process 42"):
            held.check()
    assert json.loads(file.read_text())["id"] == "x"


@no_locks
def test_of_two_that_take_it_at_once_one_has_it(folder, monkeypatch):
    folder.mkdir(parents=True)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: owner(folder))  # to settle
    with pytest.raises(UserError, match="another process is training in"), lock.hold(folder):
        pass
    assert json.loads((folder / ".heartbeat").read_text())["id"] == "x"


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_unexpected_error_of_flock_is_not_hidden(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(OSError, match="input/output"), Workdir(tmp_path / "run").claim(Config()):
        pass


def test_a_rename_that_is_refused_is_a_copy(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EEXIST, "file exists")

    workdir = Workdir(tmp_path)
    workdir.write("run", {"a": 1})
    monkeypatch.setattr(os, "replace", refuse)
    workdir.write("run", {"a": 2})
    assert workdir.read("run") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("kept", [0, 5, 11])
def test_a_kill_while_a_file_is_replaced_byte_by_byte(tmp_path, monkeypatch, kept):
    def die(source, target):
        target.write_bytes(source.read_bytes()[:kept])
        raise KeyboardInterrupt

    workdir = Workdir(tmp_path)
    workdir.write("run", {"a": 1})
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        workdir.write("run", {"a": 2})
    assert workdir.read("run") == {"a": 2}
    (tmp_path / ".run.json.tmp").write_text('{"a": ')
    with pytest.raises(UserError, match="run.json is not valid JSON"):
        workdir.read("run")
