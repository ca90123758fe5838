"""Trackers beside the run's own files: a made-up one, and the real packages where they are."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

import flaxcnn
from flaxcnn.training import Config, DataConfig, ModelConfig, RunConfig
from flaxcnn.training.config_json import to_dict
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
    monkeypatch.setitem(sys.modules, "flaxcnn.training.sinks.wandb", module)
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
