"""Augmentation inside the engine: the step, a run that stops and resumes, a wrong config."""

import json

import jax
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import (
    BalanceConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    run,
    train,
)
from flaxcnn.training.config import normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_json import from_dict, to_dict
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.parts import load_data
from flaxcnn.training.step import make_preprocess

POLICY = [("crop", 1, {"fill": 0.0}), ("rotate", 15), ("random_erasing", 0.25), ("mixup", 0.2)]


def make_config(**data) -> Config:
    return Config(
        model=ModelConfig(name="digits_cnn"),
        data=DataConfig(**{"source": "digits", "batch_size": 64, **data}),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.003),
        epochs=2,
        steps_per_call=10,
    )


def test_a_policy_is_plain_data():
    config = make_config(augment=POLICY[:3], augment_classes=(8, "9"), views=[["shift", 1]])
    config = normalize(config)
    validate(config)
    restored = from_dict(json.loads(json.dumps(to_dict(config))))
    validate(restored)
    assert restored == config
    assert config.data.augment[1] == ("rotate", 15)
    assert config.data.augment_classes == ("8", "9")
    assert config.data.views == (("shift", 1),)


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


@pytest.mark.slow
def test_a_run_with_a_policy_goes_on_to_the_same_bits(tmp_path):
    config = make_config(augment=POLICY)
    whole = run(config, tmp_path / "whole")
    assert whole is not None
    assert train(config, tmp_path / "parts", stop=lambda: True) is None  # after its first call
    resumed = run(config, tmp_path / "parts")
    assert resumed is not None and resumed == whole
    lines = [(tmp_path / name / "result.json").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]


def make_experiment(**data) -> Experiment:
    config = normalize(make_config(**data))
    validate(config)
    experiment = Experiment(config, load_data(config))
    _ = experiment.facts
    return experiment


def test_nine_augmented_copies_of_the_images_of_scarce_classes():
    experiment = make_experiment(
        balance=BalanceConfig(subsample={8: 0.05, 9: 0.05}, expand={8: 9, 9: 9}),
        augment=[("rotate", 30), ("translate", 0.2)],
        augment_classes=(8, "9"),  # a number will do, as in the other fields
    )
    augment, train = experiment._make_augment(0), experiment.dataset.splits["train"]
    assert augment is not None
    augment = jax.jit(augment)
    seen: dict[int, list] = {}
    batches = np.concatenate(list(experiment.plan))[: experiment.plan.steps_per_epoch]
    for step, indices in enumerate(batches):
        images, labels = train.load(indices)
        changed, _ = augment(jax.random.key(0), step, images, labels)
        for index, image in zip(indices, np.asarray(changed), strict=True):
            seen.setdefault(int(index), []).append(image)
    scarce = np.isin(train.strata, [8, 9])
    assert 10 < scarce.sum() < 20
    for index, shown in seen.items():
        plain = train.images[index] / 255
        if scarce[index]:
            assert 7 < len(shown) <= 10  # an epoch's last, incomplete batch is dropped
            assert len(np.unique(np.stack(shown), axis=0)) == len(shown)
            assert min(np.abs(image - plain).max() for image in shown) > 0.01
        else:
            np.testing.assert_allclose(shown, plain[None], atol=1e-7)


def test_unknown_classes_to_augment_are_refused():
    with pytest.raises(UserError, match="^data.augment_classes: there is no class 'ten'; the cl"):
        make_experiment(augment=[("flip",)], augment_classes=("ten",))
