import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm, Conv, Dropout
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.sharding import Jit, Pmap, check_divisible
from flaxcnn.training.state import make_state
from flaxcnn.training.step import TrainStep, make_eval_call, make_preprocess, make_train_call

SHAPE, CLASSES, BATCH, STEPS = (6, 6, 1), 3, 32, 3
TASK = Classification(("a", "b", "c"))
PREPROCESS = make_preprocess([0.5], [0.25])


class Network(nn.Module):
    """What differs between devices if anything does: batch statistics and noise."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = Conv(4, 3, use_bias=False, name="conv")(images)
        x = BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")(x)
        x = Dropout(0.5, axis_name=self.axis_name)(nn.relu(x), train=train)
        return nn.Dense(CLASSES, name="classifier")(x.mean((1, 2)))


def take(arrays, index):
    return arrays[0][index], arrays[1][index]


def run_steps(parallel, accumulate=1, task=TASK):
    """The losses of the first steps, and per-example outputs of an evaluation after them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 200).astype(np.int32)
    model, tx = Network(axis_name=parallel.axis_name), optax.adam(0.01)
    step = TrainStep(
        model, task, tx, PREPROCESS, accumulate=accumulate, axis_name=parallel.axis_name
    )
    call = parallel.compile_train(make_train_call(step, take))
    arrays = parallel.replicate((images, labels))
    state = parallel.replicate(make_state(Network(), tx, SHAPE, seed=0))
    losses = []
    for _ in range(STEPS):
        items = rng.integers(0, 200, (1, BATCH)).astype(np.int32)
        state, metrics = call(state, arrays, parallel.split(items), 1.0)
        losses.append(float(metrics["loss"]))
    evaluate = parallel.compile_eval(make_eval_call(model, TASK, PREPROCESS, take))
    items = np.arange(2 * BATCH, dtype=np.int32).reshape(2, BATCH)
    mask = np.ones((2, BATCH), np.float32)
    variables = parallel.replicate(parallel.unreplicate(state).variables)
    metrics, examples, _ = evaluate(variables, arrays, parallel.split((items, mask)))
    return losses, jax.device_get(metrics | examples), labels[: 2 * BATCH].reshape(2, BATCH)


@pytest.mark.parametrize(("accumulate", "weights"), [(1, ()), (2, (0.25, 1.0, 3.0))])
def test_jit_and_pmap_on_8_devices_and_jit_on_1_give_the_same_losses(accumulate, weights):
    task = Classification(TASK.class_names, class_weights=weights)
    devices = jax.devices()
    assert len(devices) == 8
    losses, outputs, labels = run_steps(Jit(devices[:1]), accumulate, task)
    assert len(set(losses)) == STEPS
    np.testing.assert_array_equal(outputs["true_label"], labels)
    for parallel in (Jit(devices), Pmap(devices)):
        ours, theirs, _ = run_steps(parallel, accumulate, task)
        np.testing.assert_allclose(ours, losses, rtol=1e-5)
        np.testing.assert_array_equal(theirs["true_label"], labels)
        np.testing.assert_allclose(theirs["loss"], outputs["loss"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [Jit, Pmap])
def test_replicate_then_unreplicate_gives_the_tree_back(kind):
    parallel = kind(jax.devices())
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3)}
    back = parallel.unreplicate(parallel.replicate(tree))
    np.testing.assert_array_equal(back["a"], tree["a"])
    np.testing.assert_array_equal(jax.random.bits(back["key"]), jax.random.bits(tree["key"]))


def test_a_batch_that_cannot_be_divided_is_named():
    check_divisible("data.batch_size", 32, 8, 4)
    with pytest.raises(UserError, match="data.batch_size must be a multiple .* 8; got 30"):
        check_divisible("data.batch_size", 30, 8)
    with pytest.raises(UserError, match="optimizer.accumulate 3; got 32"):
        check_divisible("data.batch_size", 32, 8, 3)


@pytest.mark.parametrize("kind", [Jit, Pmap])
def test_outputs_of_an_example_keep_their_shape(kind):
    """As of masks and boxes: [K, batch, ...] comes back, in the batch's order."""
    parallel = kind()
    items = np.arange(2 * 16 * 3).reshape(2, 16, 3)
    evaluate = parallel.compile_eval(
        lambda variables, arrays, items: ({}, {"boxes": items + variables}, items.sum(axis=1))
    )
    one = parallel.replicate(np.int32(1))
    _, examples, sums = evaluate(one, parallel.replicate(np.int32(0)), parallel.split(items))
    np.testing.assert_array_equal(examples["boxes"], items + 1)
    np.testing.assert_array_equal(sums, items.sum(axis=1))
