"""What `flaxcnn estimate` prints, and what it refuses."""

import json

import pytest

from flaxcnn.commands.estimate import format_estimate
from flaxcnn.commands.main import main
from flaxcnn.estimate.estimate import Estimate
from flaxcnn.estimate.step_cost import Step
from flaxcnn.training import Config, ModelConfig

CONFIG = """
from flaxcnn.training import Config, DataConfig, ModelConfig

def get_config():
    return Config(model=ModelConfig(name="mnist_mlp_512"), data=DataConfig(batch_size=64))
"""


def test_json_of_the_device_here(tmp_path, capsys):
    file = tmp_path / "dense.py"
    file.write_text(CONFIG)
    assert main(["estimate", str(file), "--session", "1h", "--json", "--config.epochs=7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["epochs"], found["devices"]) == ("compiled", 7, 8)
    assert found["fits"] and found["step"]["batch_size"] == 64
    assert found["run_seconds"] == 7 * found["epoch_seconds"]
    assert found["session_epochs"] == pytest.approx(3600 / found["epoch_seconds"])


def test_the_text():
    gib = 2.0**30
    found = Estimate(
        step=Step(128, 3 * gib, gib, gib / 2, 2.5e12, 5 * gib, 93.0),
        method="model",
        chip="TPU v5e",
        devices=1,
        capacity=15.75 * gib,
        fits=True,
        largest_batch=1100,
        largest_batch_by="by the line",
        steps_per_epoch=1000,
        epochs=90,
        arithmetic_seconds=0.01,
        traffic_seconds=0.02,
        session=4800.0,
        notes=("libtpu is not installed",),
    )
    text = format_estimate(found, Config(model=ModelConfig(name="resnet50")))
    flat = " ".join(text.split())
    for part in (
        "resnet50, float32, batch 128",
        "3.00 GiB of 15.75 GiB: fits; a model",
        "the rest 1.50 GiB",
        "largest batch 1,100; by the line",
        "2.50 TFLOP, 5.00 GiB read and written",
        "at least 20 ms, by its memory traffic; at most 6,400 images/s",
        "1,000 steps, at least 20 s, about 40 s at half",
        "90 epochs, at least 30 min, about 60 min at half",
        "in 80 min at most 240 epochs, about 120 at half",
        "never reached",
        "NOTE: libtpu is not installed",
    ):
        assert part in flat, (part, text)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("digits --chip v9", "--chip must be one of v5e, v6e, v4, h100, a100, t4, cpu"),
        ("digits --session 80", "--session must be a time such as 80m"),
        ("photos", "there is no folder photos"),
        ("digits --config.epoch=3", "did you mean epochs?"),
        ("digits --chips v5e", "Unknown command line flag"),
    ],
)
def test_what_is_refused_in_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
