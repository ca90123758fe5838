"""Augmentation inside the engine: the step, a run that stops and goes on, a wrong config."""

import jax
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, run
from flaxcnn.training.config import from_dict, to_dict, validate
from flaxcnn.training.step import make_preprocess

POLICY = [("crop", 1, {"fill": 0.0}), ("rotate", 15), ("random_erasing", 0.25), ("mixup", 0.2)]


def make_config(**data) -> Config:
    return Config(
        model=ModelConfig(name="digits_cnn"),
        data=DataConfig(**{"source": "digits", "batch_size": 64, **data}),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.003),
        epochs=2,
        steps_per_call=7,
    )


def test_a_policy_is_plain_data():
    config = make_config(augment=POLICY)
    validate(config)
    restored = from_dict(to_dict(config))
    validate(restored)
    assert restored.data.augment == config.data.augment
    assert config.data.augment[1] == ("rotate", 15)


def test_a_wrong_entry_ends_a_run_before_it_starts(tmp_path):
    with pytest.raises(UserError, match=r"^data.augment\[1\] \('rotate', 999\): degrees must be"):
        run(make_config(augment=[("flip",), ("rotate", 999)]), tmp_path / "a")
    with pytest.raises(UserError, match=r"^data.augment\[0\] \('hue', 0.1\): the images are grey"):
        run(make_config(augment=[("hue", 0.1)]), tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_floats_are_not_scaled_again():
    preprocess = make_preprocess([0.5], [0.25])
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = (np.float64(pixels) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(jax.jit(preprocess)(pixels), expected, atol=1e-6)
    floats = np.float32(pixels) / 255
    np.testing.assert_allclose(jax.jit(preprocess)(floats), expected, atol=1e-6)


def test_a_run_with_a_policy_learns_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from flaxcnn.training import loop

    config = make_config(augment=POLICY)
    whole = run(config, tmp_path / "whole")
    assert whole is not None
    # The second run is asked to stop after its first call, and started again.
    calls = loop._Loop.calls

    def stopped(self, step, logger):
        for end in calls(self, step, logger):
            signals[0].requested = True
            yield end

    signals = []
    enter = loop._StopSignal.__enter__
    with monkeypatch.context() as patch:
        patch.setattr(loop._StopSignal, "__enter__", lambda s: signals.append(s) or enter(s))
        patch.setattr(loop._Loop, "calls", stopped)
        assert run(config, tmp_path / "parts") is None
    resumed = run(config, tmp_path / "parts")
    assert resumed is not None and resumed == whole
    lines = [(tmp_path / name / "result.json").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    plain = run(make_config(), tmp_path / "plain")  # the policy does something
    assert plain is not None and plain != whole
