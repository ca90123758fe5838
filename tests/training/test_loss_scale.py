"""float16: the loss scale follows PyTorch's rule, and a skipped step leaves nothing behind."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm
from flaxcnn.tasks.classification import Classification
from flaxcnn.training import (
    Config,
    DataConfig,
    LookaheadConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    run,
    train,
)
from flaxcnn.training import parts as parts_module
from flaxcnn.training.inference import load_run
from flaxcnn.training.logger import read_rows
from flaxcnn.training.loss_scale import scale_loss
from flaxcnn.training.sharding import Jit, Pmap
from flaxcnn.training.state import make_state
from flaxcnn.training.step import TrainStep, make_preprocess, make_train_call
from flaxcnn.training.workdir import Workdir

SHAPE, BATCH = (4, 4, 1), 8
TASK = Classification(("a", "b", "c"))
# (scale, good steps) after each step of `GOOD`: what torch._amp_update_scale_ of PyTorch 2.13 gives
# with growth 2, backoff 0.5 and interval 3, from a scale of 8.
GOOD = (1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1)
TORCH = [
    *((8.0, 1), (8.0, 2), (16.0, 0), (16.0, 1), (16.0, 2), (8.0, 0), (8.0, 1)),
    *((8.0, 2), (4.0, 0), (2.0, 0), (2.0, 1), (2.0, 2), (4.0, 0), (4.0, 1)),
]


def test_the_scale_follows_pytorch():
    tx = scale_loss(optax.sgd(1.0), initial=8.0, growth_interval=3)
    params = {"w": jnp.zeros(2)}
    state, found = tx.init(params), []
    for good in GOOD:
        scale = state.scale
        gradient = jnp.array([2.0, 2.0 if good else jnp.nan]) * scale
        updates, state = tx.update({"w": gradient}, state, params)
        np.testing.assert_array_equal(updates["w"], [-2.0 * good] * 2)
        found.append((float(state.scale), int(state.good_steps)))
    assert found == TORCH
    assert int(state.skipped_steps) == 3


def test_the_scale_stays_finite_and_does_not_fall_below_1():
    tx = scale_loss(optax.sgd(1.0), initial=2.0**127, growth_interval=1)
    _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))
    assert float(state.scale) == 2.0**127  # PyTorch's does not grow to infinity either
    state = state._replace(scale=jnp.asarray(1.0))
    _, state = tx.update(jnp.full(1, jnp.inf), state)
    assert float(state.scale) == 1.0


class Network(nn.Module):
    """With what a skipped step must not move: momentum's traces, batch statistics, averages."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = BatchNorm(use_running_average=not train, axis_name=self.axis_name)(images)
        return nn.Dense(3)(x.reshape(len(x), -1))


def break_marked(key, step, images, targets):
    """An augmentation after which an image that starts with 255 makes the loss infinite."""
    marked = images[:, :1, :1, :1] == 255
    return jnp.where(marked, jnp.inf, images.astype(jnp.float32) / 255), targets


@pytest.mark.parametrize(
    ("parallel", "accumulate"),
    [pytest.param(Jit, 2, marks=pytest.mark.slow), (Pmap, 1)],
    ids=["jit, micro-batches", "pmap"],
)
def test_a_step_with_an_overflow_leaves_everything_but_scale_and_schedule(parallel, accumulate):
    parallel = parallel(jax.devices()[:2])
    rate = optax.linear_schedule(0.5, 0.0, 10)
    tx = scale_loss(optax.sgd(rate, momentum=0.9), initial=8.0, growth_interval=3)
    model = Network(parallel.axis_name)
    step = TrainStep(
        *(model, TASK, tx, make_preprocess([0.5], [0.25])),
        augment=break_marked,
        accumulate=accumulate,
        ema_decay=0.9,
        axis_name=parallel.axis_name,
    )
    call = parallel.compile_train(make_train_call(step, lambda arrays, item: item))
    start = make_state(Network(), tx, SHAPE, seed=0, ema=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, BATCH, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, 3, (3, BATCH)).astype(np.int32)

    def advance(state, images, labels):
        placed = parallel.replicate(jax.tree.map(jnp.copy, state))
        state, metrics = call(placed, (), parallel.split((images, labels)), 1.0)
        return jax.device_get((parallel.unreplicate(state), metrics))

    good, metrics = advance(start, images[:1], labels[:1])
    assert metrics["skipped_steps"] == 0 and metrics["loss_scale"] == 8
    bad = images.copy()
    bad[1, -1, 0, 0] = 255  # of one example: one micro-batch and one device
    after, metrics = advance(good, bad[1:2], labels[1:2])
    assert metrics["skipped_steps"] == 1 and metrics["loss_scale"] == 4
    assert np.isnan(metrics["loss"])
    kept = lambda s: (s.params, s.batch_stats, s.ema, s.opt_state.inner[0])  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, kept(after), kept(good))
    assert int(after.step) == 2 and int(after.opt_state.inner[1].count) == 2
    # In a call of three the means are of the other two.
    three, metrics = advance(start, bad, labels)
    last, third = advance(after, images[2:], labels[2:])
    assert metrics["skipped_steps"] == 1
    first = advance(start, images[:1], labels[:1])[1]
    np.testing.assert_allclose(metrics["loss"], (first["loss"] + third["loss"]) / 2, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, kept(three), kept(last))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), kept(good), kept(start))
    assert all(change > 0 for change in jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_scaled_step_without_overflow_is_the_plain_one():
    states = []
    for tx in (optax.sgd(0.1), scale_loss(optax.sgd(0.1), initial=1024.0)):
        step = TrainStep(Network(), TASK, tx, make_preprocess([0.5], [0.25]))
        state = make_state(Network(), tx, SHAPE, seed=0)
        images = np.random.default_rng(1).integers(0, 255, (BATCH, *SHAPE), dtype=np.uint8)
        labels = np.arange(BATCH, dtype=np.int32) % 3
        states.append(jax.jit(step)(state, (images, labels), 1.0)[0])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    plain, scaled = ((state.params, state.batch_stats) for state in states)
    jax.tree.map(close, plain, scaled)


def make_config() -> Config:
    return Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (32,)}),
        data=DataConfig("digits", batch_size=64),
        optimizer=OptimizerConfig(
            "adam",
            learning_rate=0.003,
            schedule=ScheduleConfig("constant"),
            ema_decay=0.9,
            lookahead=LookaheadConfig(every=5),
        ),
        epochs=3,
        steps_per_call=4,
        precision="float16",
    )


@pytest.fixture
def quickly(monkeypatch):
    """No pictures, a scale that starts far too high and grows every ten steps."""
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *arguments: None)
    rule = functools.partial(scale_loss, initial=2.0**22, growth_interval=10)
    monkeypatch.setattr(parts_module, "scale_loss", rule)


def test_a_run_in_float16_learns_counts_what_it_skips_and_resumes(quickly, tmp_path, capsys):
    result = run(make_config(), tmp_path / "whole")
    assert result is not None and result["accuracy"] > 0.85
    rows = [row for row in read_rows(Workdir(tmp_path / "whole")) if row["split"] == "train"]
    assert rows[0]["skipped_steps"] == 4 and rows[0]["loss"] is None  # from 2**22 on
    assert sum(row["skipped_steps"] for row in rows) == result["skipped_steps"] > 4
    assert rows[-1]["loss_scale"] == result["loss_scale"] < 2.0**22
    line = f"skipped, as a gradient was not finite: {result['skipped_steps']} of 60 steps"
    assert line in capsys.readouterr().out
    calls = iter(range(100))
    stopped = train(make_config(), tmp_path / "parts", stop=lambda: next(calls) == 3)
    assert stopped is None
    assert train(make_config(), tmp_path / "parts") == result
    untimed = lambda row: {k: v for k, v in row.items() if k != "images_per_second"}  # noqa: E731
    again = [row for row in read_rows(Workdir(tmp_path / "parts")) if row["split"] == "train"]
    assert list(map(untimed, again)) == list(map(untimed, rows))
    assert load_run(tmp_path / "parts").step in (20, 40, 60)


def test_gradients_that_no_scale_makes_finite_end_the_run(quickly, tmp_path):
    """Weights of 1e6 are infinite in float16."""
    config = make_config()
    config.optimizer = OptimizerConfig(
        "sgd", learning_rate=1e8, schedule=ScheduleConfig("constant")
    )
    config.data = dataclasses.replace(config.data, normalization=((0.0,), (1.0,)))
    with pytest.raises(UserError, match="not finite in float16 between steps .* set precision to"):
        train(config, tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(row) for row in rows)
