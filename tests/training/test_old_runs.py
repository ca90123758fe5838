"""Runs whose config.json older versions wrote: read, evaluated, predicted with and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.training import (
    BalanceConfig,
    ClipConfig,
    Config,
    DataConfig,
    LookaheadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    train,
)
from flaxcnn.training.config import fields
from flaxcnn.training.config_json import RENAMED, VERSION, from_dict, to_dict
from flaxcnn.training.inference import load_run

VERSION_1 = json.loads((Path(__file__).parents[1] / "reference/config_version_1.json").read_text())


def make_config() -> Config:
    """What config_version_1.json says, as the last flaxcnn that wrote this version had it."""
    return Config(
        model=ModelConfig("mnist_mlp_512", kwargs=ConfigDict({"hidden": (4,)})),
        data=DataConfig(
            "digits",
            batch_size=128,
            augment=(("rotate", 15),),
            balance=BalanceConfig(expand=ConfigDict({"3": 2}), subsample=ConfigDict({"4": 0.5})),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=0.003,
            schedule=ScheduleConfig(
                "step", warmup_epochs=1.0, initial_fraction=0.1, boundaries=(1.5,), decay_rate=0.5
            ),
            clip=ClipConfig(norm=1.0),
            lookahead=LookaheadConfig(every=4, decay=0.9),
            rates=ConfigDict({"*/bias": 2.0}),
        ),
        run=RunConfig(save_every_steps=5, keep_last=3, workers=1),
        epochs=3,
        seed=1,
        steps_per_call=3,
    )


def test_a_config_of_version_1_is_read():
    assert to_dict(from_dict(VERSION_1)) == to_dict(make_config())


def test_each_renamed_field_keeps_its_value():
    now, values, expected = dict(fields(Config())), {}, {}
    given = {str: "x", int: 7, float: 0.25, tuple: [1.0], ConfigDict: {"a": 1}}
    for old, new in RENAMED.items():
        section, name = old.split(".")
        assert name in VERSION_1[section] and old not in now
        expected[new] = values.setdefault(section, {})[name] = given[type(now[new])]
    read = dict(fields(from_dict(values)))
    plain = {str: str, int: int, float: float, tuple: list, ConfigDict: ConfigDict.to_dict}
    changed = {name: plain[type(v)](v) for name, v in read.items() if v != now[name]}
    assert changed == expected


def test_what_cannot_be_read_is_one_line():
    for version in (VERSION + 1, "two"):
        with pytest.raises(UserError, match=f"^config.json is of version {version}, and this fla"):
            from_dict({"version": version})
    for damaged in ({"version": 2, "data": 3}, {"data": 3}):
        with pytest.raises(UserError, match="^config.json is damaged: data is 3$"):
            from_dict(damaged)
    with pytest.raises(UserError, match="it has a field checkpoint$"):  # of no version
        from_dict({"checkpoint": {"keep_last": 2, "keep_most": 1}})


def test_an_old_run_is_resumed_and_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *arguments: None)
    # Two epochs without augmentation take less time.
    config, old = (
        make_config(),
        VERSION_1 | {"epochs": 2, "data": VERSION_1["data"] | {"augment": []}},
    )
    config.epochs, config.data.augment = 2, ()
    whole, folder, calls = train(config, tmp_path / "whole"), tmp_path / "old", iter(range(9))
    assert whole is not None
    assert train(config, folder, stop=lambda: next(calls) == 4) is None
    (folder / "config.json").write_text(json.dumps(old))
    warning = f"WARNING: {folder}/config.json is of version 1: read as version 2\n"
    capsys.readouterr()
    config.optimizer.clip.norm = 2.0
    with pytest.raises(UserError, match=r"config \(optimizer\.clip\.norm: 1\.0 -> 2\.0\); "):
        train(config, folder)
    assert capsys.readouterr().err == warning

    config.optimizer.clip.norm = 1.0
    config.run = RunConfig(keep_last=1, keep_every=100, workers=0)  # changes no result
    resumed = train(config, folder)
    assert resumed is not None and resumed["params_sha256"] == whole["params_sha256"]
    assert warning in capsys.readouterr().err
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["version"], saved["run"]["keep_last"], saved["run"]["workers"]) == (2, 1, 0)
    assert {file.name for file in (folder / "saved").iterdir()} == {
        "22",
        str(whole["best"]["step"]),
    }

    (folder / "config.json").write_text(json.dumps(old))
    run = load_run(folder)
    assert capsys.readouterr().err == warning
    metrics = run.evaluate("test").means
    assert metrics["accuracy"] == whole["best"]["accuracy"]
    assert run.predictor(np.zeros((1, 8, 8, 1), np.uint8)).sum() == pytest.approx(1.0)
