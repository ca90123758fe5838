"""Running averages that stay behind in a short run are warned of at its start."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from flaxcnn.models import create_model
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, loop
from flaxcnn.training.momentum import judge_momentum, record_momentum

START = (
    "BatchNorm keeps {} of its averages per step: after the {} steps of this run they are still "
)
END = " their initial values, and validation, which uses them, lags behind training: "


@pytest.mark.parametrize(
    ("name", "momentum", "updates", "share", "advice"),
    [
        (
            *("mobilenet_v2_0.35_96", 0.999, 105, "90%"),
            "set --config.model.kwargs.momentum=0.9, or train for 2302 steps",
        ),
        (
            *("inception_v3_keras", 0.99, 10, "90%"),
            "set --config.model.kwargs.norm_momentum=0.79, or train for 230 steps",
        ),
        ("resnet18", 0.9, 21, "11%", "train for 22 steps"),
    ],
)
def test_the_warning_names_what_to_change(name, momentum, updates, share, advice):
    expected = START.format(momentum, updates) + share + END + advice
    assert judge_momentum(momentum, updates, create_model(name)) == expected


def test_no_warning_where_a_tenth_is_left():
    model = create_model("mobilenet_v2_0.35_96")
    assert judge_momentum(0.9, 22, model) is None
    assert judge_momentum(0.999, 2302, model) is None
    assert judge_momentum(0.0, 1, model) is None  # no BatchNorm
    assert judge_momentum(0.999, 2301, model)


@pytest.mark.parametrize(
    "name",
    [
        "nasnet_a_mobile",
        "xception",
        "darknet19",
        "darknet53",
        "mobilenet_v1_0.25_128",
        "resnet50v2",
    ],
)
def test_networks_with_slow_averages_have_the_argument(name):
    assert create_model(name).momentum > 0.9
    assert create_model(name, momentum=0.5).momentum == 0.5


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.25)(x)
        return create_model("darknet19", features=2, num_classes=0, momentum=0.75)(x, train=True)


def test_each_batch_norm_is_seen():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with record_momentum() as found:
        jax.eval_shape(Mixed().init, jax.random.key(0), images)
    assert list(found.values()) == [0.25, *[0.75] * 18]
    assert next(iter(found)) == "BatchNorm_0/mean"


def test_a_run_begins_with_the_warning(tmp_path, capsys, monkeypatch):
    """Nothing is trained; micro-batches count, as each moves the averages."""
    monkeypatch.setattr(loop, "_advance", lambda *parts: None)
    config = Config(
        model=ModelConfig(name="airbench94", kwargs={"widths": (4, 4, 4), "momentum": 0.999}),
        data=DataConfig(batch_size=128, image_size=(9, 9), channels=3),
        optimizer=OptimizerConfig(accumulate=2),
        epochs=2,
    )
    assert loop.train(config, tmp_path / "run") is None
    said = capsys.readouterr().err
    assert "WARNING: BatchNorm keeps 0.999 of its averages per step: after the 40 steps" in said
    assert loop.train(config, tmp_path / "run") is None  # resumed: from what run.json says
    assert capsys.readouterr().err == said
    frozen = dataclasses.replace(config, optimizer=OptimizerConfig(freeze=".*bn.*"))
    assert loop.train(frozen, tmp_path / "frozen") is None  # these averages stay as they are
    assert "BatchNorm" not in capsys.readouterr().err
