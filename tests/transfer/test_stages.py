"""Stages: runs in folders of their own, each from the weights of the one before."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from flaxcnn.errors import UserError
from flaxcnn.estimate.estimate import without_weights
from flaxcnn.training import train
from flaxcnn.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TaskConfig,
    normalize,
)
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_json import from_dict, to_dict
from flaxcnn.training.experiment import check_stages
from flaxcnn.training.extend import extend
from flaxcnn.training.inference import load_run
from flaxcnn.training.stages import find_run, read_stages
from flaxcnn.training.state import hash_tree

HEAD = "(?!classifier).*"


def make_config(*stages, **fields) -> Config:
    return Config(
        model=ModelConfig("lenet5_dense"),
        data=DataConfig(batch_size=320, eval_batch_size=360, validation=0.0),
        optimizer=OptimizerConfig(name="momentum", learning_rate=0.05),
        **{"epochs": 1, "steps_per_call": 1, **fields},
        stages=stages,
    )


def test_a_staged_run_stopped_within_a_stage_is_the_runs_done_one_by_one(tmp_path, monkeypatch):
    config = make_config(
        ("all", {}), ("head", {"optimizer.freeze": HEAD, "data.normalization": "weights"})
    )
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *args: None)
    calls = iter(range(100))
    # It is asked before each stage and after each of its 4 steps.
    assert train(config, tmp_path / "run", stop=lambda: next(calls) == 7) is None
    assert (tmp_path / "run" / "all" / "result.json").exists()
    assert not (tmp_path / "run" / "head" / "result.json").exists()
    (tmp_path / "run").rename(tmp_path / "moved")  # a stage finds the one before beside it
    result = train(config, tmp_path / "moved")
    assert result is not None and list(result["stages"]) == ["all", "head"]
    assert json.loads((tmp_path / "moved" / "result.json").read_text()) == result
    # The second stage on its own, from the run of the first.
    alone = dataclasses.replace(
        config,
        model=ModelConfig("lenet5_dense", weights=f"run:{tmp_path}/moved/all"),
        data=dataclasses.replace(config.data, normalization="weights"),
        optimizer=dataclasses.replace(config.optimizer, freeze=HEAD),
        stages=(),
    )
    other = train(alone, tmp_path / "alone")
    assert other is not None and other["params_sha256"] == result["params_sha256"]
    runs = [load_run(tmp_path / "moved" / name) for name in ("all", "head")]
    first, last = (run.variables["params"] for run in runs)
    assert hash_tree(first["conv1"]) == hash_tree(last["conv1"])
    assert hash_tree(first["classifier"]) != hash_tree(last["classifier"])
    assert runs[0].facts.mean == runs[1].facts.mean
    # What asks for a run is given the last stage's; finished, it does nothing.
    assert find_run(tmp_path / "moved") == tmp_path / "moved" / "head"
    assert load_run(tmp_path / "moved").step == 4
    assert train(config, tmp_path / "moved") == result
    for wrong in (make_config(), make_config(("all", {"seed": 1}))):
        with pytest.raises(UserError, match="holds a run with another config"):
            train(wrong, tmp_path / "moved")
    with pytest.raises(UserError, match="a config with stages cannot be extended"):
        extend(config, tmp_path / "moved", 1)


def test_each_stage_is_the_config_with_its_fields_and_the_weights_of_the_one_before():
    config = normalize(
        make_config(
            ("a", {"model.name": "vgg11"}),
            ("b", {"model.name": "vgg13", "optimizer.schedule.name": "constant"}),
            ("c", {"epochs": 3, "model.weights": "run:previous,checkpoint=last"}),
            ("d", {"model.weights": "file:x"}),
        )
    )
    config.run.mirror = "gs://bucket/run"
    stages = read_stages(config)
    assert [stage.config.model.weights for stage in stages] == [
        "",
        "previous:a,partial=true",
        "previous:b,checkpoint=last,partial=true",
        "file:x",
    ]
    assert [stage.config.model.name for stage in stages] == [
        "vgg11",
        "vgg13",
        "lenet5_dense",
        "lenet5_dense",
    ]
    assert [stage.config.epochs for stage in stages] == [1, 1, 3, 1]
    assert stages[1].config.optimizer.schedule.name == "constant"
    assert stages[1].config.run.mirror == "gs://bucket/run/b" and not stages[1].config.stages
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_an_estimate_of_a_stage_needs_no_weights():
    stages = read_stages(
        normalize(make_config(("a", {}), ("b", {"data.normalization": "weights"})))
    )
    first = without_weights(stages[0].config)
    second = without_weights(stages[1].config, first)
    assert first == stages[0].config
    assert (second.model.weights, second.data.normalization) == ("", "auto")
    validate(second)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("a",), r"stages must be pairs of a name and fields"),
        ((("a/b", {}),), "'a/b' must be the name of a folder"),
        ((("a", {}), ("a", {})), "there cannot be a second 'a'"),
        ((("a", {"optimizer.rate": 1}),), "stage 'a': the config has no field optimizer.rate"),
        ((("a", {"epochs": "2"}),), "stage 'a': epochs must be int, got str '2'"),
        ((("a", {"stages": ()}),), "stage 'a': a stage has no stages"),
        ((("a", {"model.weights": "run:previous"}),), "there is no stage before the first"),
        ((("a", {}), ("b", {"optimizer.freeze": "("})), "stage 'b': optimizer.freeze='\\('"),
    ],
)
def test_wrong_stages_are_refused(stages, message):
    with pytest.raises(UserError, match=message) as error:
        validate(normalize(make_config(*stages)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer.freeze": "stem"}, "stage 'b': optimizer.freeze='stem' matches no parameter"),
        ({"model.name": "digits_cnn", "model.weights": "run:previous"}, None),
        (
            {"model.name": "digits_cnn", "model.weights": "run:previous,partial=false"},
            "stage 'b': model.weights: the stage a is not of this network",
        ),
    ],
)
def test_a_later_stage_that_cannot_be_is_refused_before_the_first_is_trained(
    fields, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("flaxcnn.training.loop._train", lambda *args: None)
    config = make_config(("a", {}), ("b", fields))
    if message is None:
        assert train(config, tmp_path / "run") is None and (tmp_path / "run").exists()
        return
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_takes_the_network_of_the_one_before_into_its_own(tmp_path):
    """As a cascade takes its first stage."""
    names, joints = ["l_hip", "r_shoulder"], [[8, 9], [20, 12]]
    table: dict = {"joint_names": names}
    for shade, split in enumerate(("train", "test")):
        (tmp_path / split).mkdir()
        Image.fromarray(np.full((32, 32), shade, np.uint8)).save(tmp_path / split / "a.png")
        table[split] = [{"file_name": "a.png", "joints": joints}] * 8
    (tmp_path / "annotations.json").write_text(json.dumps(table))
    cascade = {
        "model.name": "deeppose_cascade",
        "model.kwargs": {"first": "mnist_tiny", "second": "mnist_mlp_512", "crop": 8},
        "model.weights": "run:previous,into=backbone",
        "optimizer.freeze": "stage1",
    }
    config = make_config(("first", {}), ("second", cascade), task=TaskConfig("pose"))
    config.model = ModelConfig("mnist_tiny")
    config.data = DataConfig(
        source=f"keypoints:{tmp_path}", batch_size=8, eval_batch_size=8, validation=0.0
    )
    first = check_stages(read_stages(normalize(config)), tmp_path / "run")
    assert first.model.num_classes == 4
