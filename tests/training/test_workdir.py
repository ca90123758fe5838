import errno

import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import Config, RunConfig
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.workdir import Workdir


def begin(workdir: Workdir, config: Config) -> None:
    """What a run writes once everything the config can get wrong has been tried."""
    with workdir.claim(config):
        workdir.write("config", to_dict(config))
        workdir.write("run", {})


def test_a_run_that_fails_before_it_begins_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path / "run").claim(Config()):
        1 / 0  # noqa: B018
    assert not (tmp_path / "run").exists()
    begin(Workdir(tmp_path / "run"), Config(epochs=4))
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path / "run").claim(Config(epochs=4)):
        1 / 0  # noqa: B018
    assert (tmp_path / "run" / "run.json").exists()


def test_an_object_store_is_for_mirrors():
    with pytest.raises(UserError, match="gs://bucket/run: a run's folder must be on a file system"):
        Workdir("gs://bucket/run")


def test_the_folder_belongs_to_its_config(tmp_path):
    workdir = Workdir(tmp_path / "a" / "run")
    begin(workdir, Config(epochs=3))
    with workdir.claim(Config(epochs=3)):
        assert workdir.config().epochs == 3
    with (
        pytest.raises(UserError, match="another config \\(epochs: 3 -> 4; seed: 0 -> 1\\)"),
        workdir.claim(Config(epochs=4, seed=1)),
    ):
        pass
    assert workdir.config().epochs == 3


def test_how_a_run_is_looked_after_may_change(tmp_path):
    begin(Workdir(tmp_path), Config(run=RunConfig(keep_last=2)))
    with Workdir(tmp_path).claim(Config(run=RunConfig(keep_last=5, workers=0))) as lock:
        lock.check()
        assert Workdir(tmp_path).has("run")


def test_two_runs_cannot_share_a_folder(tmp_path):
    with (
        Workdir(tmp_path).claim(Config()),
        pytest.raises(UserError, match="another process is training in"),
        Workdir(tmp_path).claim(Config()),
    ):
        pass
    with Workdir(tmp_path).claim(Config()):
        pass  # the lock went with the first run


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write to --workdir .*file/run: Not a directory"),
        Workdir(tmp_path / "file" / "run").claim(Config()),
    ):
        pass


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run: run.json is missing"):
        Workdir(tmp_path).read("run")
    (tmp_path / "run.json").write_text('{"a":')
    with pytest.raises(UserError, match="run.json is not valid JSON"):
        Workdir(tmp_path).read("run")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write("result", {"a": 1})
    with pytest.raises(TypeError):
        workdir.write("result", {"a": object()})
    assert workdir.read("result") == {"a": 1}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line(tmp_path, wrapped):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail():
        if not wrapped:
            raise full
        raise ValueError("RESOURCE_EXHAUSTED") from full  # as tensorstore does

    with (
        pytest.raises(UserError, match="no space left on the disk of --workdir .* free some"),
        Workdir(tmp_path).claim(Config()),
    ):
        fail()
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path).claim(Config()):
        1 / 0  # noqa: B018 (any other error passes through)
