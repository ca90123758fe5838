"""Weights that a run keeps at zero, and weights that it keeps equal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from flaxcnn.errors import UserError
from flaxcnn.tasks.classification import Classification
from flaxcnn.training import Config, OptimizerConfig, train
from flaxcnn.training.inference import load_run
from flaxcnn.training.masks import hold, read_masks
from flaxcnn.training.optim import Lookahead, make_optimizer
from flaxcnn.training.state import make_state
from flaxcnn.training.step import TrainStep, make_preprocess

SHAPE, CLASSES, LEARNING_RATE = (4, 4, 1), 3, 0.5
TASK = Classification(("a", "b", "c"))
PREPROCESS = make_preprocess([0.5], [0.25])
MASK = np.random.default_rng(0).random((16, CLASSES)) < 0.5
NAME = "classifier/kernel"


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(CLASSES, name="classifier")(images.reshape(len(images), -1))


def make_batch(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, 8).astype(np.int32)


def find_gradient(kernel, images, labels):
    """That of softmax regression on standardised pixels with a bias of 0, in float64."""
    x = ((images / 255 - 0.5) / 0.25).reshape(len(images), -1)
    logits = x @ np.float64(kernel)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return x.T @ p / len(labels), p.mean(0)


def make_parts(tx, *, masked=False, shared=False, kernel=None, **kwargs):
    state = make_state(
        Linear(),
        tx,
        SHAPE,
        seed=0,
        ema="ema_decay" in kwargs,
        lookahead="lookahead" in kwargs,
        masked=masked,
        shared=shared,
        initialize=lambda v: v if kernel is None else {"params": {"classifier": {
            "kernel": jnp.asarray(kernel), "bias": jnp.zeros(CLASSES)}}},
    )  # fmt: skip
    state = hold(state, {NAME: MASK} if masked else {})
    return TrainStep(Linear(), TASK, tx, PREPROCESS, **kwargs), state


def test_a_masked_weight_is_zero_and_the_rest_has_its_own_gradient():
    """Of which alone is the norm that clips it."""
    step, state = make_parts(
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(LEARNING_RATE)), masked=True
    )
    kernel = np.float64(state.params["classifier"]["kernel"])
    assert not kernel[~MASK].any() and kernel[MASK].all()
    batch = make_batch(1)
    state, _ = step(state, batch, 1.0)
    grad, of_bias = find_gradient(kernel, *batch)
    norm = np.sqrt((grad[MASK] ** 2).sum() + (of_bias**2).sum())
    assert norm > 0.1
    expected = np.where(MASK, kernel - LEARNING_RATE * 0.1 / norm * grad, 0)
    np.testing.assert_allclose(state.params["classifier"]["kernel"], expected, atol=1e-6)


def test_zeros_stay_under_any_optimizer_average_and_lookahead():
    """Muon moves what has no gradient, too, and an average remembers where weights began."""
    step, state = make_parts(
        make_optimizer(OptimizerConfig(name="muon", weight_decay=0.1), lambda step: 0.1),
        masked=True,
        ema_decay=0.9,
        lookahead=Lookahead(2, 0.5, 3),
    )
    call = jax.jit(step)
    for seed in range(3):
        state, _ = call(state, make_batch(seed), 1.0)
    assert state.slow is not None
    for tree in (state.params, state.ema, state.slow[0]):
        kernel = np.asarray(tree["classifier"]["kernel"])
        assert not kernel[~MASK].any() and kernel[MASK].all()


def test_shared_weights_move_by_the_sum_of_their_gradients():
    groups = np.random.default_rng(1).integers(0, 4, (16, CLASSES))
    kernel = np.array([-0.5, -0.1, 0.2, 0.4], np.float32)[groups]
    step, state = make_parts(optax.sgd(LEARNING_RATE), shared=True, kernel=kernel)
    batch = make_batch(1)
    grad, _ = find_gradient(kernel, *batch)
    sums = np.bincount(groups.reshape(-1), grad.reshape(-1))
    state, _ = jax.jit(step)(state, batch, 1.0)
    moved = np.asarray(state.params["classifier"]["kernel"])
    np.testing.assert_allclose(moved, kernel - LEARNING_RATE * sums[groups], atol=1e-6)
    assert len(np.unique(moved)) == 4


def test_shared_weights_stay_equal_where_an_update_is_not_the_same_for_all():
    """Adaptive clipping is by unit: weights of other units move by other amounts."""
    groups = np.random.default_rng(1).integers(0, 4, (16, CLASSES))
    kernel = np.array([-0.5, -0.1, 0.2, 0.4], np.float32)[groups]
    tx = optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(LEARNING_RATE))
    step, state = make_parts(tx, shared=True, kernel=kernel)
    state, _ = step(state, make_batch(1), 1.0)
    moved = np.asarray(state.params["classifier"]["kernel"])
    for group in range(4):
        assert len(np.unique(moved[groups == group])) == 1
    assert len(np.unique(moved)) == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"fc/kernel": MASK}, "no parameter is called fc/kernel"),
        ({NAME: MASK[:3]}, r"has shape \(3, 3\), and the parameter \(16, 3\)"),
        ({NAME: np.float32(MASK)}, "holds float32, not bool"),
        ({}, "holds no mask"),
    ],
)
def test_a_file_of_masks_that_does_not_fit(arrays, message, tmp_path):
    save_file(arrays, tmp_path / "masks.safetensors")
    _, state = make_parts(optax.sgd(1.0))
    with pytest.raises(UserError, match=f"^optimizer.mask_file: .*{message}"):
        read_masks(tmp_path / "masks.safetensors", state.params)


def make_config(mask_file, **kwargs) -> Config:
    optimizer = OptimizerConfig(mask_file=str(mask_file), share=True, ema_decay=0.9)
    config = Config(optimizer=optimizer, epochs=2, steps_per_call=10, **kwargs)
    config.model.name, config.model.kwargs.hidden = "mnist_mlp_512", (6, 5)
    config.run.save_every_steps = 10
    return config


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_without_the_file(tmp_path):
    """What is kept is in the checkpoint: the file may be gone, or another, by then."""
    file = tmp_path / "masks.safetensors"
    mask = np.random.default_rng(0).random((64, 6)) < 0.3
    save_file({"fc1/kernel": mask}, file)
    config = make_config(file)
    whole = train(config, tmp_path / "whole")
    calls = iter([False, True])
    assert train(config, tmp_path / "cut", stop=lambda: next(calls)) is None
    file.unlink()
    assert train(config, tmp_path / "cut") == whole
    run = load_run(tmp_path / "cut", "last")
    kernel = np.asarray(run.variables["params"]["fc1"]["kernel"])
    assert not kernel[~mask].any() and kernel[mask].any()
    with pytest.raises(UserError, match=r"optimizer.mask_file: .*not there"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=r"another config \(optimizer.mask_file: "):
        train(make_config(""), tmp_path / "cut")
