"""`--mirror hf://user/repository`: copies of a run as commits, on a server in this process."""

import json
import random
from pathlib import Path

import hub_server
import huggingface_hub
import huggingface_hub.constants
import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import Config, mirror, restore
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.mirror import Mirror
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights import downloads

WHERE = "hf://me/run"

# huggingface_hub calls httpx by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for module in (mirror, restore, downloads):
        monkeypatch.setattr(module, "PAUSE", 0.0)
    with hub_server.serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def data_of(step: int) -> dict[str, bytes]:
    return {
        "state/d/large": random.Random(step).randbytes(5000),
        "metadata": b"step %d" % step,
    }


def begin(path: Path) -> Workdir:
    path.mkdir()
    workdir = Workdir(path)
    workdir.write("config", to_dict(Config()))
    workdir.write("environment", [{"started": "now"}])
    workdir.write("run", {"class_names": ["a"]})
    return workdir


def save(workdir: Workdir, step: int) -> None:
    with open(workdir.metrics, "a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    for name, data in data_of(step).items():
        file = workdir.checkpoints / str(step) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def copy(workdir: Workdir) -> Mirror:
    copying = Mirror(WHERE, workdir)
    assert copying._copies is not None
    copying._copy_what_is_new(copying._copies)
    return copying


def test_a_copy_is_a_commit_from_which_another_machine_resumes(server, tmp_path, capsys):
    workdir = begin(tmp_path / "run")
    save(workdir, 1)
    save(workdir, 2)
    copying = copy(workdir)
    commits = server.repositories["me/run"]
    assert len(commits) == 2  # one for each checkpoint, whole
    assert {path.split("/")[0] for path in commits[-1][1]} == {"1", "2"}
    for name, data in data_of(2).items():
        assert commits[-1][1][f"2/checkpoint/{name}"] == data

    for name in data_of(1):  # the run keeps the newest two
        (workdir.checkpoints / "1" / name).unlink()
    for folder in ("1/state/d", "1/state", "1"):
        (workdir.checkpoints / folder).rmdir()
    save(workdir, 3)
    copying._copy_what_is_new(copying._copies)
    files = server.repositories["me/run"][-1][1]
    assert {path.split("/")[0] for path in files} == {"2", "3"}

    server.cuts["3/checkpoint/state/d/large"] = [1000, 3000]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Mirror(WHERE, Workdir(fresh)).restore(Config())
    restored = Workdir(fresh)
    for step in (2, 3):
        for name, data in data_of(step).items():
            assert (restored.checkpoints / str(step) / name).read_bytes() == data
    assert f"restored step 3 from the mirror {WHERE}" in capsys.readouterr().out


def test_a_damaged_copy_and_another_run_are_not_taken(server, tmp_path):
    workdir = begin(tmp_path / "run")
    save(workdir, 1)
    save(workdir, 2)
    copy(workdir)
    changed = bytes(5000)
    server.commit("me/run", {"2/checkpoint/state/d/large": changed})
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Mirror(WHERE, Workdir(fresh)).restore(Config())
    assert [path.name for path in Workdir(fresh).checkpoints.iterdir()] == ["1"]

    other = begin(tmp_path / "other")
    other.write("environment", [{"started": "later"}])
    save(other, 1)
    with pytest.raises(UserError, match="hf://me/run holds copies of another run"):
        Mirror(WHERE, other).restore(Config())


def test_a_hub_that_cannot_be_reached_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="--mirror hf://me/run cannot be read") as error:
        Mirror(WHERE, Workdir(tmp_path / "run")).restore(Config())
    assert "\n" not in str(error.value)
    for where in ("hf://me", "hf://me/run@v1"):
        with pytest.raises(UserError, match="must be hf://USER/REPOSITORY"):
            Mirror(where, Workdir(tmp_path / "run"))
