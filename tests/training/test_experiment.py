"""The state that a run starts with where the network looks at images first."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxcnn.training import (
    Config,
    DataConfig,
    LookaheadConfig,
    ModelConfig,
    OptimizerConfig,
    run,
    train,
)
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.parts import load_data
from flaxcnn.training.state import hash_tree


def make_config(parallel="jit", seed=0) -> Config:
    """A tiny airbench on the digits, as colour images that it can take."""
    return Config(
        model=ModelConfig(name="airbench94", kwargs={"widths": (4, 4, 4)}),
        data=DataConfig(batch_size=128, image_size=(9, 9), channels=3),
        optimizer=OptimizerConfig(
            name="nesterov",
            learning_rate=0.1,
            rates=ConfigDict({"*/bias": 8.0}),
            lookahead=LookaheadConfig(every=3),
            ema_decay=0.9,
        ),
        epochs=2,
        seed=seed,
        parallel=parallel,
        steps_per_call=5,
    )


def make_experiment(config) -> Experiment:
    dataset = load_data(config)
    return Experiment(config, dataset)


def test_patches_of_the_first_training_images_decide_the_first_kernel(monkeypatch):
    monkeypatch.setattr("flaxcnn.training.experiment._INITIAL_IMAGES", 20)
    experiment = make_experiment(make_config())
    kernel = experiment.initial_state().batch_stats["whiten"]["kernel"]
    pixels = experiment.dataset.splits["train"].load(slice(None))[0] / 255
    images = ((pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2)))[:20]
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    whitened = np.cov((patches @ np.float64(kernel).reshape(12, 24)[:, :12]).T)
    variances = np.linalg.eigvalsh(np.cov(patches.T))[::-1]  # of grey images 8 are 0
    np.testing.assert_allclose(whitened, np.diag(variances / (variances + 5e-4)), atol=1e-3)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_all_else_starts_as_it_would_have(parallel):
    experiment = make_experiment(make_config(parallel))
    state, shapes = experiment.initial_state(), experiment.abstract_state()
    assert hash_tree(state) == hash_tree(experiment.initial_state())
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(shapes)
    ]
    assert hash_tree(state.ema) == hash_tree(state.params)
    assert hash_tree(state.slow) == hash_tree((state.params, state.batch_stats))
    other = make_experiment(make_config(parallel, seed=1)).initial_state()
    assert hash_tree(other.params) != hash_tree(state.params)


@pytest.mark.slow
def test_a_run_goes_on_to_the_bits_of_one_that_was_not_stopped(tmp_path, monkeypatch):
    config = make_config()
    whole = run(config, tmp_path / "whole")
    assert whole is not None and whole["steps"] == 2 * 10
    assert train(config, tmp_path / "parts", stop=lambda: True) is None  # after the first call
    monkeypatch.setattr(Experiment, "initial_state", None)  # it has begun, and must not again
    assert run(config, tmp_path / "parts") == whole
