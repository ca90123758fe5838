"""Copies of a run on a file system that fails in every way that we know of.

A run here is its files: the checkpoints are folders of random bytes, as the mirror never looks into
them. The last tests train.
"""

import errno
import hashlib
import importlib.util
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.training import Config, ModelConfig, RunConfig, copies, loop, mirror, restore, train
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.extend import extend
from flaxcnn.training.logger import read_rows
from flaxcnn.training.mirror import Mirror, PathStorage
from flaxcnn.training.state import hash_tree
from flaxcnn.training.workdir import Workdir

ROOT = Path(__file__).parents[2]
FILES = ("meta", "state/d/0")  # of a checkpoint


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(mirror, "PAUSE", 0.0)
    monkeypatch.setattr(restore, "PAUSE", 0.0)


class Faulty(PathStorage):
    """A file system whose operations (a piece read or written is one) fail from the n-th on.

    `lasting`: so many of them. `half`: what is written then is cut off, and nothing is said.
    """

    def __init__(self, where, first=None, error=errno.EIO, lasting=1, half=False):
        super().__init__(str(where))
        self.count, self.first, self.error = itertools.count(), first, error
        self.lasting, self.half = lasting, half

    def _operate(self, is_write=False):
        n = next(self.count)
        failing = self.first is not None and self.first <= n < self.first + self.lasting
        if failing and not (self.half and is_write):
            raise OSError(self.error, errno.errorcode[self.error])
        return failing

    def names(self, path=""):
        self._operate()
        return super().names(path)

    def read(self, path):
        for piece in super().read(path):
            self._operate()
            yield piece

    def write(self, path, pieces):
        def passed():
            for piece in pieces:
                yield piece[: len(piece) // 2]
                if not self._operate(is_write=True):
                    yield piece[len(piece) // 2 :]

        super().write(path, passed())

    def remove(self, path):
        self._operate()
        super().remove(path)


def begin(path: Path, config: Config | None = None, started: str = "now") -> Workdir:
    path.mkdir(parents=True)
    workdir = Workdir(path)
    workdir.write("config", to_dict(config or Config()))
    workdir.write("environment", [{"started": started}])
    workdir.write("run", {"class_names": ["a"]})
    return workdir


def save(workdir: Workdir, step: int, keep_last: int = 2) -> None:
    """What a run does when it has reached `step`, its random bytes a function of that."""
    with open(workdir.metrics, "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
    folder = workdir.checkpoints / str(step)
    (folder / "state" / "d").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(random.Random(f"{step}{name}").randbytes(50))
    for older in sorted(map(int, (p.name for p in workdir.checkpoints.iterdir())))[:-keep_last]:
        shutil.rmtree(workdir.checkpoints / str(older))


def finish(workdir: Workdir, step: int) -> None:
    workdir.examples.write_bytes(b"examples")
    workdir.write("result", {"steps": step})


def settle(copying: Mirror) -> None:
    """Has what is new copied, and waits until that has ended or failed."""
    copying.update()
    end = time.monotonic() + 20
    while copying._is_working():
        assert time.monotonic() < end
        time.sleep(0.0005)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_is_whole(workdir: Workdir) -> int:
    """The last step of a run that was restored: everything is as `save` made it."""
    steps = sorted(int(path.name) for path in workdir.checkpoints.iterdir())
    for step in steps:
        expected = {name: random.Random(f"{step}{name}").randbytes(50) for name in FILES}
        assert contents(workdir.checkpoints / str(step)) == expected
    rows = [json.loads(line)["step"] for line in workdir.metrics.read_text().splitlines()]
    assert rows == list(range(1, steps[-1] + 1))
    assert workdir.config() == Config()
    assert workdir.read("run") == {"class_names": ["a"]}
    assert not (workdir.path / ".mirror").exists()
    return steps[-1]


def resume(where, path: Path, config: Config | None = None) -> Workdir:
    """A run's start on a machine where `path` may be empty."""
    workdir = Workdir(path)
    path.mkdir(exist_ok=True)
    Mirror(str(where), workdir).restore(config or Config())
    return workdir


def operate(tmp_path: Path, storage: Faulty, steps=(1, 2, 3)) -> int:
    """A run that saves and is mirrored in `storage`; the last step copied before a fault."""
    workdir, copied = begin(tmp_path / "run"), 0
    copying = Mirror(str(tmp_path / "mirror"), workdir, storage)
    failed = False
    for step in steps:
        save(workdir, step)
        try:
            copying._copy_what_is_new(copying._copies)
            copied = copied if failed else step
        except OSError:
            failed = True
    return copied


def test_a_fresh_machine_resumes_from_the_newest_copy(tmp_path, capsys):
    workdir = begin(tmp_path / "run")
    with Mirror(str(tmp_path / "m"), workdir) as copying:
        copying.restore(Config())
        for step in range(1, 5):
            save(workdir, step)
            settle(copying)
        save(workdir, 5)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["4", "5"]
    assert "mirrored to" in capsys.readouterr().out
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh")) == 5
    assert f"restored step 5 from the mirror {tmp_path / 'm'}" in capsys.readouterr().out
    assert contents(tmp_path / "fresh" / "saved") == contents(tmp_path / "run" / "saved")


def count_operations(tmp_path: Path) -> int:
    storage = Faulty(tmp_path / "mirror")
    assert operate(tmp_path, storage) == 3
    return next(storage.count)


def with_each_operation(tmp_path: Path, **fault):
    """After a fault at each operation in turn: the last step copied before it, and the restored."""
    for first in range(count_operations(tmp_path / "none")):
        here = tmp_path / str(first)
        copied = operate(here, Faulty(here / "mirror", first, **fault))
        fresh = resume(here / "mirror", here / "fresh")
        if fresh.has("run"):
            yield copied, check_is_whole(fresh)
        else:  # nothing had been copied: it starts anew
            assert copied == 0 and not any(fresh.path.iterdir())


def test_cut_off_at_any_operation(tmp_path):
    """By a mount that is gone from then on; a kill leaves the same behind."""
    restored = list(with_each_operation(tmp_path, error=errno.ENOTCONN, lasting=10**9))
    assert all(now >= copied for copied, now in restored)
    assert {now for _, now in restored} == {1, 2, 3}


def test_an_error_once_at_any_operation_is_made_up_for_by_the_next_checkpoint(tmp_path):
    restored = list(with_each_operation(tmp_path, error=errno.EIO))
    assert all(now >= copied for copied, now in restored)
    # Only an error in the third, after which none comes, can leave the mirror behind.
    assert {now for copied, now in restored if copied < 2} == {3}


def test_a_file_cut_off_without_an_error_at_any_operation(tmp_path):
    restored = list(with_each_operation(tmp_path, half=True))
    assert all(now >= copied for copied, now in restored)


@pytest.mark.parametrize("how", ["truncated", "gone", "another"])
def test_damage_to_any_file_of_the_newest_copy_is_found(tmp_path, capsys, how):
    workdir = begin(tmp_path / "run")
    copying = Mirror(str(tmp_path / "m"), workdir)
    for step in (1, 2):
        save(workdir, step)
        copying._copy_what_is_new(copying._copies)
    files = [path for path in (tmp_path / "m" / "2").rglob("*") if path.is_file()]
    assert len(files) == 7
    for n, file in enumerate(files):
        before = file.read_bytes()
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(before[:20] + b"" if how == "truncated" else b"x" + before[1:])
        assert check_is_whole(resume(tmp_path / "m", tmp_path / f"fresh{n}")) == 1
        if file.name != "manifest.json":
            assert "copy 2 in the mirror" in capsys.readouterr().err
        file.write_bytes(before)


def test_a_stale_listing(tmp_path):
    """It names what is not there any more, and lacks what is."""

    class Stale(PathStorage):
        def names(self, path=""):
            return [*(n for n in super().names(path) if n != "3"), "9", "result-9", "x", "4~"]

    operate(tmp_path, Faulty(tmp_path / "mirror"))
    workdir = Workdir(tmp_path / "run")
    copying = Mirror(str(tmp_path / "mirror"), workdir, Stale(str(tmp_path / "mirror")))
    (tmp_path / "fresh").mkdir()
    fresh = Mirror("m", Workdir(tmp_path / "fresh"), Stale(str(tmp_path / "mirror")))
    fresh.restore(Config())
    assert check_is_whole(Workdir(tmp_path / "fresh")) == 2
    for step in (4, 5):
        save(workdir, step)
        copying._copy_what_is_new(copying._copies)
    assert check_is_whole(resume(tmp_path / "mirror", tmp_path / "later")) == 5


def test_training_hears_once_that_the_mount_is_gone_and_once_that_it_is_back(tmp_path, capsys):
    workdir, where = begin(tmp_path / "run"), tmp_path / "mount" / "m"
    with Mirror(str(where), workdir) as copying:
        copying.restore(Config())
        for step in range(1, 7):
            save(workdir, step)
            if step == 3:
                (tmp_path / "mount").rename(tmp_path / "away")
                (tmp_path / "mount").mkdir()  # as an unmounted folder is
            if step == 5:
                assert list((tmp_path / "mount").iterdir()) == []
                (tmp_path / "mount").rmdir()
                (tmp_path / "away").rename(tmp_path / "mount")
            settle(copying)
    out, err = capsys.readouterr()
    assert re.findall(r"fails|works again", err) == ["fails", "works again"]
    assert "fails (what it held is gone): training continues" in err
    assert f"mirrored to {where}, up to 6" in out
    assert check_is_whole(resume(where, tmp_path / "fresh")) == 6


def test_a_mount_that_stays_away_does_not_end_the_run(tmp_path, capsys):
    workdir = begin(tmp_path / "run")
    storage = Faulty(tmp_path / "m", first=20, lasting=10**9, error=errno.ENOTCONN)
    with Mirror("m", workdir, storage) as copying:
        copying.restore(Config())
        for step in (1, 2, 3):
            save(workdir, step)
            settle(copying)
    err = capsys.readouterr().err
    assert err.count("WARNING") == 2 and "fails (ENOTCONN): training continues" in err
    assert "lacks the last of this run (ENOTCONN); the same command completes it" in err
    with Mirror(str(tmp_path / "m"), workdir) as copying:  # the same command
        copying.restore(Config())
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh")) == 3


def test_a_mount_that_hangs_is_waited_for_no_longer_than_it_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mirror, "STALLED", 0.05)
    released = mirror.threading.Event()

    class Hanging(PathStorage):
        def write(self, path, pieces):
            released.wait(20)
            raise OSError(errno.EIO, "hung")

    workdir = begin(tmp_path / "run")
    with Mirror("m", workdir, Hanging(str(tmp_path / "m"))) as copying:
        copying.restore(Config())
        save(workdir, 1)
        copying.update()  # returns at once
    assert "lacks the last of this run (it takes too long)" in capsys.readouterr().err
    released.set()
    copying._thread.join(5)


def test_a_slow_copy_is_not_disturbed_by_what_the_run_removes(tmp_path):
    """Saves come faster than copies: each copy that is begun ends whole."""
    workdir = begin(tmp_path / "run")

    class Slow(PathStorage):
        step = 1

        def write(self, path, pieces):
            if path.endswith("meta") and self.step < 9:
                for _ in range(3):
                    self.step += 1
                    save(workdir, self.step)
            super().write(path, pieces)

    save(workdir, 1)
    copying = Mirror("m", workdir, Slow(str(tmp_path / "m")))
    copying._copy_what_is_new(copying._copies)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["10", "9"]
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh")) == 10


def test_the_last_whole_copy_stays_until_the_next_is_whole(tmp_path):
    workdir = begin(tmp_path / "run")
    seen = []

    class Watching(PathStorage):
        def write(self, path, pieces):
            whole = [p.parent.name for p in (tmp_path / "m").glob("*/manifest.json")]
            seen.append((path.partition("/")[0], whole))
            super().write(path, pieces)

    copying = Mirror("m", workdir, Watching(str(tmp_path / "m")))
    for step in (1, 2, 3):
        save(workdir, step, keep_last=1)
        copying._copy_what_is_new(copying._copies)
    assert all(whole for name, whole in seen if name != "1")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["3"]
    save(workdir, 4, keep_last=1)  # between copying and removing
    copying._prune(copying._copies)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["3"]


def test_a_checkpoint_that_the_run_removes_just_now_is_no_failure(tmp_path, monkeypatch):
    workdir, link = begin(tmp_path / "run"), copies._link

    def remove_and_link(source, target):
        shutil.rmtree(workdir.checkpoints / "2", ignore_errors=True)
        link(source, target)

    save(workdir, 1)
    save(workdir, 2)
    monkeypatch.setattr(copies, "_link", remove_and_link)
    copying = Mirror(str(tmp_path / "m"), workdir)
    copying._copy_what_is_new(copying._copies)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh")) == 1  # no row of step 2


def test_a_copy_that_somebody_has_deleted_is_made_again(tmp_path):
    workdir = begin(tmp_path / "run")
    copying = Mirror(str(tmp_path / "m"), workdir)
    save(workdir, 1)
    save(workdir, 2)
    copying._copy_what_is_new(copying._copies)
    shutil.rmtree(tmp_path / "m" / "2")
    copying._copy_what_is_new(copying._copies)
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh")) == 2


def test_copies_that_are_further_than_the_run_stay(tmp_path):
    """The mirror could not be read when the session began."""
    operate(tmp_path, Faulty(tmp_path / "mirror"))
    shutil.rmtree(tmp_path / "run")
    workdir = begin(tmp_path / "run")
    copying = Mirror(str(tmp_path / "mirror"), workdir)
    save(workdir, 1)
    copying._copy_what_is_new(copying._copies)
    assert check_is_whole(resume(tmp_path / "mirror", tmp_path / "fresh")) == 3


def test_a_step_that_was_reached_again_on_another_machine_is_copied_again(tmp_path):
    operate(tmp_path, Faulty(tmp_path / "mirror"))
    workdir = Workdir(tmp_path / "run")
    (workdir.checkpoints / "3" / "meta").write_bytes(b"other bits")
    first = Mirror(str(tmp_path / "mirror"), workdir, Faulty(tmp_path / "mirror", 6))
    with pytest.raises(OSError, match="EIO"):
        first._copy_what_is_new(first._copies)
    assert check_is_whole(resume(tmp_path / "mirror", tmp_path / "fresh")) == 2
    again = Mirror(str(tmp_path / "mirror"), workdir)
    again._copy_what_is_new(again._copies)
    newest = resume(tmp_path / "mirror", tmp_path / "fresh2").checkpoints / "3"
    assert (newest / "meta").read_bytes() == b"other bits"


def test_of_a_finished_run_the_result_is_found(tmp_path, capsys):
    workdir = begin(tmp_path / "run")
    with Mirror(str(tmp_path / "m"), workdir) as copying:
        copying.restore(Config())
        for step in (1, 2):
            save(workdir, step)
        finish(workdir, 2)
    fresh = resume(tmp_path / "m", tmp_path / "fresh")
    assert check_is_whole(fresh) == 2
    assert fresh.read("result") == {"steps": 2}
    assert fresh.examples.read_bytes() == b"examples"
    # Checkpoints that were deleted to save space are not deleted in the mirror too.
    shutil.rmtree(tmp_path / "run" / "saved")
    with Mirror(str(tmp_path / "m"), workdir) as copying:
        copying.restore(Config())
    assert check_is_whole(resume(tmp_path / "m", tmp_path / "fresh2")) == 2
    # A result without its checkpoint is measured again.
    shutil.rmtree(tmp_path / "m" / "2")
    assert not resume(tmp_path / "m", tmp_path / "fresh3").has("result")


def test_epochs_added_to_a_finished_run_are_not_taken_back(tmp_path):
    workdir = begin(tmp_path / "run")
    with Mirror(str(tmp_path / "m"), workdir) as copying:
        copying.restore(Config())
        save(workdir, 1)
        finish(workdir, 1)
    (workdir.path / "result.json").unlink()  # as --extend does
    with Mirror(str(tmp_path / "m"), workdir) as copying:
        copying.restore(Config())
        assert not workdir.has("result")
        save(workdir, 2)
        settle(copying)
        assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "2"]
        assert not resume(tmp_path / "m", tmp_path / "fresh").has("result")
        finish(workdir, 2)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "2", "result-2"]


@pytest.mark.parametrize(("here", "there", "used"), [(2, 1, "run"), (2, 2, "run"), (1, 2, "m")])
def test_the_newest_step_wins_and_the_line_says_which(tmp_path, capsys, here, there, used):
    operate(tmp_path, Faulty(tmp_path / "mirror"), range(1, there + 1))
    shutil.rmtree(tmp_path / "run")
    workdir = begin(tmp_path / "run")
    for step in range(1, here + 1):
        save(workdir, step)
    (workdir.checkpoints / str(here) / "local").touch()
    resume(tmp_path / "mirror", tmp_path / "run")
    assert (workdir.checkpoints / "2" / "local").exists() == (used == "run")
    out = capsys.readouterr().out
    if used == "m":
        assert f"restored step 2 from the mirror m; {tmp_path} had step 1" in out.replace(
            str(tmp_path / "mirror"), "m"
        ).replace(str(tmp_path / "run"), str(tmp_path))
    else:
        assert f"has step {there}, {workdir.path} has {here}: it is used" in out


def test_a_mirror_of_another_run_is_refused(tmp_path):
    operate(tmp_path, Faulty(tmp_path / "mirror"))
    before = contents(tmp_path / "mirror")
    other = begin(tmp_path / "other", started="later")
    save(other, 7)
    with pytest.raises(UserError, match="mirror holds copies of another run than .*other: choose"):
        resume(tmp_path / "mirror", tmp_path / "other")
    with pytest.raises(
        UserError, match=r"mirror holds a run with another config \(epochs: 20 -> 3\)"
    ):
        resume(tmp_path / "mirror", tmp_path / "fresh", Config(epochs=3))
    assert list((tmp_path / "fresh").iterdir()) == []
    # Nor is it written to, where it could not be read at the start.
    with pytest.raises(UserError, match="another run"):
        copying = Mirror(str(tmp_path / "mirror"), other)
        copying._copy_what_is_new(copying._copies)
    assert contents(tmp_path / "mirror") == before


def test_where_nothing_can_be_read_the_run_does_not_start_anew(tmp_path, capsys):
    workdir = Workdir(tmp_path / "run")
    (tmp_path / "m").write_text("no folder")
    with pytest.raises(UserError, match=r"m cannot be read \(Not a directory\), and .* start anew"):
        Mirror(str(tmp_path / "m"), workdir).restore(Config())
    save(begin(tmp_path / "run"), 1)
    Mirror(str(tmp_path / "m"), workdir).restore(Config())  # it has something to continue from
    assert "fails (Not a directory): training continues" in capsys.readouterr().err
    operate(tmp_path / "x", Faulty(tmp_path / "x" / "mirror"))
    for file in (tmp_path / "x" / "mirror").glob("*/run.json"):
        file.write_text("{")
    with pytest.raises(UserError, match=r"no copy in --mirror .* is whole \(2, 3\)"):
        resume(tmp_path / "x" / "mirror", tmp_path / "x" / "fresh")


@pytest.mark.parametrize("cut", range(8))
def test_a_restore_that_is_killed_is_done_again(tmp_path, monkeypatch, cut):
    operate(tmp_path, Faulty(tmp_path / "mirror"))
    count, move = itertools.count(), restore.os.replace

    def replace(source, target):
        if next(count) == cut:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(restore.os, "replace", replace)
    try:
        resume(tmp_path / "mirror", tmp_path / "fresh")
    except KeyboardInterrupt:
        assert cut < 7
    monkeypatch.undo()
    fresh = resume(tmp_path / "mirror", tmp_path / "fresh")
    assert check_is_whole(fresh) == 3 and (fresh.checkpoints / "2").exists()


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("ftp://host/x", "must be a folder or begin with gs://, s3://, az://, hf://"),
        ("/content/drive/MyDrive/x", "Google Drive is not mounted"),
        ("{tmp}/run/mirror", "lie in one another"),
        ("{tmp}", "lie in one another"),
    ],
)
def test_where_no_mirror_can_be_is_one_line(tmp_path, where, line):
    with pytest.raises(UserError, match=line):
        Mirror(where.format(tmp=tmp_path), Workdir(tmp_path / "run"))


def test_a_manifest_that_names_files_elsewhere_is_not_believed(tmp_path):
    operate(tmp_path, Faulty(tmp_path / "mirror"))
    manifest = tmp_path / "mirror" / "3" / "manifest.json"
    content = json.loads(manifest.read_text())
    (tmp_path / "x").write_text("x")
    content["files"]["../../x"] = hashlib.sha256(b"x").hexdigest()
    manifest.write_text(json.dumps(content))
    assert check_is_whole(resume(tmp_path / "mirror", tmp_path / "fresh")) == 2
    assert not (tmp_path / "fresh" / "x").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="etils takes TensorFlow's gs://"
)
def test_an_object_store_by_etils_with_fsspecs_memory_in_place_of_gcsfs(tmp_path, monkeypatch):
    class Objects(MemoryFileSystem):
        """As Google's: a folder is there if something is in it."""

        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(str(path).replace("gs://", "/"))

        def mkdir(self, path, create_parents=True, **kwargs):
            raise AssertionError("a folder was made")

    objects = {"gcs": Objects()}  # by etils' name of gs://
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", objects.__getitem__)
    workdir = begin(tmp_path / "run")
    with Mirror("gs://bucket/runs/1", workdir) as copying:
        copying.restore(Config())
        for step in range(1, 5):
            save(workdir, step)
            settle(copying)
        finish(workdir, 4)
    assert all(path.startswith("/bucket/runs/1/") for path in Objects.store)
    assert {path.split("/")[4] for path in Objects.store} == {"3", "4", "result-4"}
    fresh = resume("gs://bucket/runs/1", tmp_path / "fresh")
    assert check_is_whole(fresh) == 4 and fresh.has("result")


def make_config(where: Path | str = "", budget: str = "") -> Config:
    return Config(
        model=ModelConfig(name="mnist_mlp_512", kwargs={"hidden": (8,)}),
        run=RunConfig(mirror=str(where), budget=budget),
        epochs=3,
        steps_per_call=8,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A finished run, without a mirror."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "report_run", report)
        train(make_config(), folder)
    return Workdir(folder)


def report(experiment, workdir, state):
    """Without the pictures, which take longer than such a run."""
    workdir.write("result", {"steps": int(state.step), "state": hash_tree(state)})


def rows(workdir: Workdir) -> list[dict]:
    """What does not depend on the clock: not the rate, nor the hash of rows that have it."""
    timed = ("images_per_second", "rows_sha256")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(workdir)]


def test_a_run_that_lost_its_machine_and_copies_ends_with_the_same_bits(
    uninterrupted, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "report_run", report)
    monkeypatch.setattr(loop, "draw_missing", lambda config, workdir: None)
    where, calls = tmp_path / "My Drive" / "m", itertools.count(1)
    config = make_config(where)
    with monkeypatch.context() as patch:
        # Each copy is of some 35 operations: it dies in one of the first three.
        patch.setattr(mirror, "PathStorage", lambda where: Faulty(where, 60, lasting=10**9))
        # Within the third epoch: each is of 20 steps, in calls of at most 8.
        assert train(config, tmp_path / "a", stop=lambda: next(calls) == 7) is None
    assert "lacks the last of this run" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a")
    result = train(config, tmp_path / "b")
    assert re.search(
        r"restored step (20|40|48) from the mirror .*b had no checkp", capsys.readouterr().out
    )
    assert result == uninterrupted.read("result")
    assert rows(Workdir(tmp_path / "b")) == rows(uninterrupted)
    # Another machine finds it finished, and can add epochs to it.
    assert train(config, tmp_path / "c") == result
    extend(config, tmp_path / "d", 2)
    assert Workdir(tmp_path / "d").read("run")["extended"] == [2]


def test_a_budget_ends_the_command_with_a_save_and_says_how_to_resume(tmp_path, capsys):
    (tmp_path / "my config.py").write_text(
        "from flaxcnn.training import Config, ModelConfig\n"
        "def get_config():\n"
        "    model = ModelConfig(name='mnist_mlp_512', kwargs={'hidden': (8,)})\n"
        "    return Config(model=model, epochs=3, steps_per_call=8)\n"
    )
    command = ["train", str(tmp_path / "my config.py"), "--workdir", str(tmp_path / "run")]
    command += ["--budget", "1s", "--mirror", str(tmp_path / "m")]
    assert main(command) == 75
    out = capsys.readouterr().out
    assert "mirrored to" in out and out.rstrip().endswith(
        f"within the budget of 1s; resume in a new session: run this same cell again "
        f"(flaxcnn train '{tmp_path}/my config.py' {' '.join(command[2:])})"
    )
    assert [path.name for path in (tmp_path / "run" / "saved").iterdir()] == ["8"]
    assert Workdir(tmp_path / "run").config().run == RunConfig(
        mirror=str(tmp_path / "m"), budget="1s"
    )
    with pytest.raises(UserError, match="run.budget must be a time such as"):
        train(make_config(budget="80"), tmp_path / "other")


def start(command_env, tmp_path, *arguments) -> subprocess.Popen:
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "train.py", *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=command_env, stdout=log, stderr=log)


@pytest.mark.slow
def test_killed_and_resumed_from_the_mirror_on_a_fresh_machine(command_env, run_command, tmp_path):
    options = ["--config.epochs=5", "--config.steps_per_call=4", "--mirror"]
    process = start(command_env, tmp_path, "--workdir", tmp_path / "a", *options, tmp_path / "m")
    while process.poll() is None and not (tmp_path / "m" / "80" / "manifest.json").exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    assert process.poll() is None, (tmp_path / "log").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "m", tmp_path / "m2")
    finished = run_command("train.py", "--workdir", tmp_path / "b", *options, tmp_path / "m")
    assert finished.returncode == 0, finished.stderr
    assert "restored step" in finished.stdout
    reference = run_command("train.py", "--workdir", tmp_path / "c", *options, "")
    ours, theirs = (re.search(r"params ([0-9a-f]{64})", x.stdout) for x in (finished, reference))
    assert ours and theirs and ours[1] == theirs[1]
    # On two devices the sums are in another order, so that the bits may differ.
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = start(
        command_env | devices, tmp_path, "--workdir", tmp_path / "d", *options, tmp_path / "m2"
    )
    assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    assert "devices 1 x cpu -> 2 x cpu" in (tmp_path / "log").read_text()
    results = [Workdir(tmp_path / name).read("result") for name in "bd"]
    assert abs(results[0]["accuracy"] - results[1]["accuracy"]) < 0.02
