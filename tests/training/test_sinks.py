"""Trackers beside the run's own files: a made-up one, and the real packages where they are."""

import importlib.util
import json
import struct
import sys
import time
import types

import pytest

import flaxcnn
from flaxcnn.training import Config, DataConfig, ModelConfig, RunConfig
from flaxcnn.training.sinks import Sinks, flatten
from flaxcnn.training.workdir import Workdir


class Tracker:
    """What it was sent, of all runs; `fails_at` a step."""

    calls: list = []
    fails_at, known = 0, 0

    def __init__(self, place, name, config, run_id, folder):
        self.run_id = run_id or "made-up"
        self.calls.append(("begin", place, name, run_id))

    def reached(self, split):
        return self.known

    def log(self, step, values):
        if step == self.fails_at:
            raise SystemExit("the network is gone\nat length")
        self.calls.append((step, *values.items()))

    def picture(self, step, file):
        self.calls.append((step, file.name))

    def close(self, finished):
        self.calls.append(("end", finished))


@pytest.fixture
def tracker(monkeypatch):
    made = type("Made", (Tracker,), {"calls": []})
    module: types.ModuleType = types.SimpleNamespace(Tracker=made)
    monkeypatch.setitem(sys.modules, "flaxcnn.training.sinks.wandb_tracker", module)
    return made


def row(step, split="train", **values):
    return {"step": step, "epoch": step / 2, **values, "split": split}


def test_a_run_keeps_its_id_and_no_step_is_sent_twice(tmp_path, tracker, capsys):
    folder = Workdir(tmp_path / "study" / "seed0")
    folder.make()
    with Sinks(("wandb:team/digits",), folder, {}) as sinks:
        sinks.log(row(1, loss=2.0, skipped=None))
        sinks.log(row(1, "state", sha256="0"))
        sinks.log(row(2, loss=1.5))
        sinks.log(row(2, "validation", loss=1.6))
    assert tracker.calls == [
        ("begin", "team/digits", "study/seed0", ""),
        (1, ("epoch", 0.5), ("train/loss", 2.0)),
        (2, ("epoch", 1.0), ("train/loss", 1.5)),
        (2, ("epoch", 1.0), ("validation/loss", 1.6)),
        ("end", False),
    ]
    tracker.calls.clear()
    (folder.path / "curves.png").touch()
    result = {"steps": 3, "loss": 1.0, "split": "test", "report": {"x": 1}}
    for _ in range(2):
        with Sinks(("wandb:team/digits",), folder, {}) as sinks:
            for step in (1, 2, 3):
                sinks.log(row(step, loss=1.0))
            sinks.finish(result, [folder.path / "curves.png", folder.path / "missing.png"])
    assert tracker.calls == [
        ("begin", "team/digits", "study/seed0", "made-up"),
        (3, ("epoch", 1.5), ("train/loss", 1.0)),
        (3, ("result/steps", 3), ("result/loss", 1.0)),
        (3, "curves.png"),
        ("end", True),
    ]
    assert not capsys.readouterr().err


def test_one_that_fails_is_reported_once_and_caught_up_with(tmp_path, tracker, capsys):
    folder = Workdir(tmp_path)
    tracker.fails_at = 2
    names = ("wandb:digits", "nothing:digits")
    rows = [row(step, loss=0.5) for step in (1, 2, 3)]
    with Sinks(names, folder, {}) as sinks:
        for entry in rows:
            sinks.log(entry)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("training continues without it" in line for line in lines)
    assert any("wandb:digits of run.sinks fails (the network is gone)" in line for line in lines)
    # The step that failed may have arrived: it is not sent again.
    tracker.fails_at = 0
    with Sinks(names[:1], folder, {}) as sinks:
        for entry in rows:
            sinks.log(entry)
    steps = [call[0] for call in tracker.calls if isinstance(call[0], int)]
    assert steps == [1, 3]


def test_what_the_tracker_knows_better_counts(tmp_path, tracker):
    tracker.known = 2  # sent from a machine that has died since the last copy
    with Sinks(("wandb:digits",), Workdir(tmp_path), {}) as sinks:
        for step in (1, 2, 3):
            sinks.log(row(step, loss=0.5))
    assert [call[0] for call in tracker.calls] == ["begin", 3, "end"]


def test_a_config_is_flattened():
    flat = flatten({"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": None, "f": 0.5})
    assert flat == {"a.b": 1, "a.c": "{}", "d": '[1, "x"]', "e": "null", "f": 0.5}


@pytest.fixture
def needs(request):
    """The package of that name, of which there is a test run; else why the test is skipped."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed (docs/tools.md)")
    return request.param


def read_mlflow(folder, name):
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["model.name"] == "mnist_mlp_512"
    pictures = {file.path for file in client.list_artifacts(run.info.run_id)}
    found = [
        (metric.step, key, metric.value)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    return run.info.run_id, found, pictures


def read_log(file):
    """The records of a file of wandb, which are in LevelDB's log format after 7 bytes."""
    content, start, record = file.read_bytes(), 7, b""
    while start + 7 <= len(content):
        left = 2**15 - start % 2**15  # of the block
        if left < 7:
            start += left
            continue
        _, size, kind = struct.unpack("<IHB", content[start : start + 7])
        record += content[start + 7 : start + 7 + size]
        start += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(folder, name):
    from wandb.proto.wandb_internal_pb2 import Record

    found, ids, pictures = [], set(), set()
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for _ in range(100):  # the end is written just after `finish` has returned
            records = [Record.FromString(content) for content in read_log(file)]
            if records and records[-1].WhichOneof("record_type") == "exit":
                break
            time.sleep(0.1)
        for record in records:
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            for item in record.history.item:
                key, *part = item.nested_key
                if part:
                    pictures.add(f"{key}.png")
                elif not key.startswith("_"):
                    found.append((record.history.step.num, key, json.loads(item.value_json)))
    (run_id,) = ids
    return run_id, found, pictures


def read_trackio(folder, name):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs(name)
    found, pictures = [], set()
    for row in SQLiteStorage.get_logs(name, run):
        for key, value in row.items():
            if isinstance(value, dict):
                pictures.add(f"{key}.png")
            elif key not in ("step", "timestamp"):
                found.append((row["step"], key, value))
    return run, found, pictures


@pytest.mark.zoo
@pytest.mark.parametrize("needs", ["mlflow", "wandb", "trackio"], indirect=True)
@pytest.mark.filterwarnings("default")  # theirs are not ours
def test_the_real_package_has_the_runs_rows(needs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (4,)}),
        data=DataConfig("digits", batch_size=256),
        run=RunConfig(sinks=(f"{needs}:digits",)),
        epochs=3,
    )
    # Stopped after an epoch; the rows after its checkpoint are done again.
    assert flaxcnn.train(config, tmp_path / "run", on_validation=lambda step, row: True) is None
    first = json.loads((tmp_path / "run" / "sinks.json").read_text())
    result = flaxcnn.train(config, tmp_path / "run")
    assert result is not None
    run_id, found, pictures = globals()[f"read_{needs}"](tmp_path / "run", "digits")
    assert run_id == first[f"{needs}:digits"]["run_id"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] != "state"]
    expected = {
        (row["step"], f"{row['split']}/{key}"): value
        for row in rows
        for key, value in row.items()
        if key not in ("split", "step", "epoch")
    }
    logged = [entry for entry in found if entry[1].startswith(("train/", "validation/"))]
    assert len(logged) == len(expected), "each once"
    assert {(step, key): value for step, key, value in logged} == pytest.approx(expected)
    last = [value for step, key, value in found if key == "result/accuracy"]
    assert last == [pytest.approx(result["accuracy"])]
    assert {"curves.png", "confusion_matrix.png"} <= pictures
    before = len(found)
    flaxcnn.train(config, tmp_path / "run")
    assert len(globals()[f"read_{needs}"](tmp_path / "run", "digits")[1]) == before
