import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.models._network import Outputs
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.optim import Lookahead
from flaxcnn.training.state import hash_tree, make_state
from flaxcnn.training.step import TrainStep, make_eval_call, make_preprocess, make_train_call

SHAPE, CLASSES, BATCH, LEARNING_RATE = (4, 4, 1), 3, 8, 0.5
TASK = Classification(("a", "b", "c"))
PREPROCESS = make_preprocess([0.5], [0.25])


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(CLASSES, name="classifier")(images.reshape(len(images), -1))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(4, (3, 3), name="conv")(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(CLASSES, name="classifier")(x.mean((1, 2)))


def make_batch(seed: int, n: int = BATCH):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, n).astype(np.int32)


def make_parts(model, tx=None, **kwargs):
    tx = tx or optax.sgd(LEARNING_RATE)
    state = make_state(
        model, tx, SHAPE, seed=0, ema="ema_decay" in kwargs, lookahead="lookahead" in kwargs
    )
    return TrainStep(model, TASK, tx, PREPROCESS, **kwargs), state


def softmax_regression(kernel, bias, images, labels):
    """Loss and gradient in NumPy float64, of softmax regression on standardised pixels."""
    x = ((images / 255 - 0.5) / 0.25).reshape(len(images), -1)
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    p[np.arange(len(labels)), labels] -= 1
    return loss, x.T @ p / len(labels), p.mean(0), (logits.argmax(1) == labels).mean()


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("lr_scale", [1.0, 0.25])
def test_a_step_is_softmax_regression_in_numpy(accumulate, lr_scale):
    step, state = make_parts(Linear(), accumulate=accumulate)
    images, labels = make_batch(0)
    weights = state.params["classifier"]
    kernel, bias = np.float64(weights["kernel"]), np.float64(weights["bias"])
    loss, kernel_grad, bias_grad, accuracy = softmax_regression(kernel, bias, images, labels)
    state, metrics = jax.jit(step)(state, (images, labels), lr_scale)
    rate = LEARNING_RATE * lr_scale
    new = state.params["classifier"]
    np.testing.assert_allclose(new["kernel"], kernel - rate * kernel_grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["bias"], bias - rate * bias_grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    assert int(state.step) == 1


class Auxiliary(nn.Module):
    """Two softmax regressions, the second an auxiliary classifier."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = images.reshape(len(images), -1)
        logits, auxiliary = (nn.Dense(CLASSES, name=name)(x) for name in ("main", "other"))
        return Outputs(logits, (auxiliary,)) if train else logits


def test_auxiliary_classifiers_count_with_their_weight():
    tx = optax.sgd(LEARNING_RATE)
    state = make_state(Auxiliary(), tx, SHAPE, seed=0)
    step = TrainStep(Auxiliary(), dataclasses.replace(TASK, auxiliary_weight=0.4), tx, PREPROCESS)
    images, labels = make_batch(0)
    new, metrics = jax.jit(step)(state, (images, labels), 1.0)
    for name, weight in (("main", 1.0), ("other", 0.4)):
        kernel, bias = (np.float64(state.params[name][leaf]) for leaf in ("kernel", "bias"))
        loss, gradient, _, _ = softmax_regression(kernel, bias, images, labels)
        expected = kernel - LEARNING_RATE * weight * gradient
        np.testing.assert_allclose(new.params[name]["kernel"], expected, rtol=1e-4, atol=1e-5)
        if name == "main":
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_class_weights_multiply_the_loss_of_an_example_and_leave_the_metrics(accumulate):
    weights = np.array([0.25, 1.0, 3.0])
    task = dataclasses.replace(TASK, class_weights=tuple(weights.tolist()), auxiliary_weight=0.4)
    tx = optax.sgd(LEARNING_RATE)
    state = make_state(Auxiliary(), tx, SHAPE, seed=0)
    step = TrainStep(Auxiliary(), task, tx, PREPROCESS, accumulate=accumulate)
    images, labels = make_batch(0)
    new, metrics = jax.jit(step)(state, (images, labels), 1.0)
    for name, share in (("main", 1.0), ("other", 0.4)):
        kernel, bias = (np.float64(state.params[name][leaf]) for leaf in ("kernel", "bias"))
        # Each example alone is a softmax regression of one; together their weighted mean.
        gradient = sum(
            weights[label] * softmax_regression(kernel, bias, image[None], label[None])[1]
            for image, label in zip(images, labels, strict=True)
        )
        expected = kernel - LEARNING_RATE * share * gradient / BATCH
        np.testing.assert_allclose(new.params[name]["kernel"], expected, rtol=1e-4, atol=1e-5)
        if name == "main":
            loss = softmax_regression(kernel, bias, images, labels)[0]
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_a_call_of_k_steps_is_k_steps():
    step, state = make_parts(Normalised(), tx=optax.sgd(0.1, momentum=0.9))
    images, labels = make_batch(1, 5 * BATCH)
    items = np.arange(5 * BATCH).reshape(5, BATCH)
    call = jax.jit(make_train_call(step, lambda arrays, i: (arrays[0][i], arrays[1][i])))
    together, metrics = call(state, (images, labels), items, 1.0)
    losses = []
    for index in items:
        state, one = jax.jit(step)(state, (images[index], labels[index]), 1.0)
        losses.append(float(one["loss"]))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (together.params, together.batch_stats),
        (state.params, state.batch_stats),
    )


def test_noise_differs_between_steps_and_micro_batches_and_repeats_from_the_same_state():
    step, state = make_parts(Normalised(), tx=optax.sgd(0.0))
    batch = make_batch(2)
    after, first = jax.jit(step)(state, batch, 1.0)
    _, again = jax.jit(step)(state, batch, 1.0)
    _, second = jax.jit(step)(after, batch, 1.0)
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]
    # The same examples in both micro-batches: only their noise can make the means differ.
    twice = tuple(np.repeat(x, 2, axis=0) for x in batch)
    accumulating, state = make_parts(Normalised(), tx=optax.sgd(0.0), accumulate=2)
    _, both = jax.jit(accumulating)(state, twice, 1.0)
    assert abs(both["loss"] - first["loss"]) > 1e-4


def test_the_moving_average_follows_its_formula():
    decay = 0.3
    step, state = make_parts(Linear(), ema_decay=decay)
    expected = np.float64(state.params["classifier"]["kernel"])
    for t in range(4):
        state, _ = jax.jit(step)(state, make_batch(t), 1.0)
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.float64(state.params["classifier"]["kernel"])
    average = state.variables["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(average, state.params["classifier"]["kernel"])


def test_lookahead_takes_weights_and_statistics_back_after_the_update():
    plain, state = make_parts(Normalised())
    lookahead = Lookahead(every=2, decay=0.9, total_steps=2)
    step, start = make_parts(Normalised(), lookahead=lookahead)
    for t in range(2):  # the second step does not see that the copy was there
        state, _ = jax.jit(plain)(state, make_batch(t), 0.5)
    got = start
    for t in range(2):
        got, _ = jax.jit(step)(got, make_batch(t), 0.5)
    before, after, now = (
        (s.params["conv"]["kernel"], s.batch_stats["norm"]["mean"], s.batch_stats["norm"]["var"])
        for s in (start, state, got)
    )
    for old, new, moved in zip(before, after, now, strict=True):
        assert np.abs(new - old).max() > 1e-3
        np.testing.assert_allclose(moved, 0.81 * old + 0.19 * new, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, got.slow, (got.params, got.batch_stats))


def test_batch_statistics_follow_flax_and_the_averaged_gradient_is_of_all_micro_batches():
    step, state = make_parts(Normalised(), accumulate=2)
    images, labels = make_batch(3)
    after, _ = jax.jit(step)(state, (images, labels), 1.0)
    x = PREPROCESS(images)
    conv = nn.Conv(4, (3, 3)).apply({"params": state.params["conv"]}, x)
    mean = np.zeros(4)
    for half in (conv[0::2], conv[1::2]):
        mean = 0.9 * mean + 0.1 * np.asarray(half).mean((0, 1, 2))
    np.testing.assert_allclose(after.batch_stats["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)


def test_evaluation_masks_padding_and_keeps_order():
    model = Linear()
    state = make_state(model, optax.identity(), SHAPE, seed=0)
    images, labels = make_batch(4, 6)
    call = jax.jit(make_eval_call(model, TASK, PREPROCESS, lambda arrays, item: item))
    padded = np.r_[0:6, 0, 0].reshape(2, 4)
    mask = (np.arange(8) < 6).astype(np.float32).reshape(2, 4)
    out, examples, sums = call(state.variables, (), ((images[padded], labels[padded]), mask))
    assert not sums
    weights = jax.tree.map(np.float64, state.params["classifier"])
    loss, _, _, accuracy = softmax_regression(weights["kernel"], weights["bias"], images, labels)
    np.testing.assert_allclose(out["loss"].sum() / 6, loss, rtol=1e-5)
    np.testing.assert_allclose(out["accuracy"].sum() / 6, accuracy, rtol=1e-6)
    np.testing.assert_array_equal(examples["true_label"].reshape(-1)[:6], labels)


def test_the_hash_sees_values_names_shapes_and_types():
    tree = {"a": jnp.arange(6.0), "b": jax.random.key(0)}
    variants = [
        tree,
        {**tree, "a": jnp.arange(6.0).at[0].set(1e-30)},
        {**tree, "a": jnp.arange(6.0).reshape(2, 3)},
        {**tree, "a": jnp.arange(6)},
        {**tree, "b": jax.random.key(1)},
        {"c": tree["a"], "b": tree["b"]},
    ]
    assert len({hash_tree(v) for v in variants}) == len(variants)
    assert hash_tree(tree) == hash_tree(jax.device_get({"a": tree["a"], "b": tree["b"]}))
