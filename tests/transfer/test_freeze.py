"""What is frozen keeps its bits, and the rest learns as if it were alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm
from flaxcnn.models import create_model
from flaxcnn.models._network import Network, run_block
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.config import (
    ClipConfig,
    Config,
    LookaheadConfig,
    ModelConfig,
    OptimizerConfig,
    normalize,
)
from flaxcnn.training.config_check import validate
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.freeze import Freeze, list_paths
from flaxcnn.training.optim import make_lookahead, make_optimizer, number_layers
from flaxcnn.training.parts import load_data
from flaxcnn.training.sharding import make_parallel
from flaxcnn.training.state import hash_tree, make_state
from flaxcnn.training.step import TrainStep, make_preprocess, make_train_call

SHAPE, CLASSES, BATCH, STEPS = (4, 4, 1), 3, 8, 3
TASK = Classification(("a", "b", "c"))
PREPROCESS = make_preprocess([0.5], [0.25])


class Block(nn.Module):
    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        norm = BatchNorm(not self.train, 0.9, axis_name=self.axis_name, name="bn")
        return nn.relu(norm(x))


class Small(Network):
    """Two blocks, the second with Flax's own BatchNorm behind it, and a head."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = run_block(self, Block(train, self.axis_name, name="stage1_block1"), images)
        x = run_block(self, Block(train, self.axis_name, name="stage10"), x)
        x = nn.BatchNorm(axis_name=self.axis_name, name="final_bn")(
            x, use_running_average=not train
        )
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


def run_steps(optimizer: OptimizerConfig):
    """The first state and the last, on the host, after STEPS steps: pmap, and remat."""
    freeze = Freeze(optimizer.freeze, optimizer.rates.to_dict())
    devices = make_parallel("pmap", jax.devices()[:2])
    model = Small(num_classes=CLASSES, axis_name=devices.axis_name, remat=True)
    tx = make_optimizer(optimizer, optax.constant_schedule(0.5))
    step = TrainStep(
        model,
        TASK,
        tx,
        PREPROCESS,
        freeze=freeze,
        accumulate=optimizer.accumulate,
        ema_decay=optimizer.ema_decay,
        lookahead=make_lookahead(optimizer, STEPS),
        axis_name=devices.axis_name,
    )
    first = make_state(model, tx, SHAPE, seed=0, ema=True, lookahead=True, freeze=freeze)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS, BATCH, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32)
    call = devices.compile_train(make_train_call(step, lambda arrays, item: item))
    state, arrays = devices.replicate(first), devices.replicate(())
    first = jax.device_get(first.replace(key=0))  # the call uses up what it is given
    state, _ = call(state, arrays, devices.split((images, labels)), 1.0)
    return first, jax.device_get(devices.unreplicate(state).replace(key=0))


OPTIMIZER = OptimizerConfig(
    name="momentum",
    weight_decay=0.1,
    clip=ClipConfig(norm=1.0),
    accumulate=2,
    ema_decay=0.9,
    lookahead=LookaheadConfig(every=2),
    freeze="stage1",
    rates=ConfigDict({"final*": 0.0}),  # parameters that are trained, to no avail
)


def test_what_is_frozen_or_has_a_rate_of_zero_keeps_its_bits():
    first, last = run_steps(OPTIMIZER)
    held = {"stage1_block1", "final_bn"}
    for before, after in ((first.params, last.params), (first.batch_stats, last.batch_stats)):
        for name in before:
            assert (hash_tree(before[name]) == hash_tree(after[name])) == (name in held), name
    # Averages, slow copies and the optimizer's moments are those of the others alone.
    for tree in (last.ema, last.slow[0], last.opt_state):
        names = {str(key) for path, _ in jax.tree_util.tree_leaves_with_path(tree) for key in path}
        assert "['stage10']" in names and "['stage1_block1']" not in names
    assert set(last.variables["params"]) == set(first.params)


def test_the_rest_learns_as_if_it_were_alone():
    """One step of the head: softmax regression, in NumPy, on what the frozen network gives."""
    model, tx = Small(num_classes=CLASSES), optax.sgd(0.5)
    freeze = Freeze("(?!classifier).*")
    state = make_state(model, tx, SHAPE, seed=0, freeze=freeze)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    step = TrainStep(model, TASK, tx, PREPROCESS, freeze=freeze)
    after, _ = jax.jit(step)(state, (images, labels), 1.0)
    assert hash_tree(after.batch_stats) == hash_tree(state.batch_stats)
    _, seen = model.apply(
        state.variables, PREPROCESS(images), train=False, capture_intermediates=True
    )
    maps = np.float64(seen["intermediates"]["final_bn"]["__call__"][0])
    x, head = maps.mean((1, 2)), state.params["classifier"]
    p = np.exp(x @ np.float64(head["kernel"]) + np.float64(head["bias"]))
    p /= p.sum(1, keepdims=True)
    p[np.arange(BATCH), labels] -= 1
    expected = head["kernel"] - 0.5 * x.T @ p / BATCH
    np.testing.assert_allclose(after.params["classifier"]["kernel"], expected, rtol=1e-4, atol=1e-6)


def test_the_backward_pass_of_what_is_frozen_is_not_computed():
    def measure(pattern):
        freeze, model = Freeze(pattern), Small(num_classes=CLASSES)
        tx = optax.sgd(0.1, momentum=0.9)
        state = jax.eval_shape(lambda: make_state(model, tx, (32, 32, 1), seed=0, freeze=freeze))
        step = TrainStep(model, TASK, tx, PREPROCESS, freeze=freeze)
        shapes = ((8, 32, 32, 1), jnp.uint8), ((8,), jnp.int32)
        batch = tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)
        lowered = jax.jit(step).trace(state, batch, 1.0).lower(lowering_platforms=("tpu",))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
        return lowered.cost_analysis()["flops"], size

    (whole, moments), (head, of_head) = measure(""), measure("(?!classifier).*")
    # The second convolution, most of the work, has a forward pass and two backward ones.
    assert head < 0.4 * whole and of_head == 4 * (4 * CLASSES + CLASSES) < moments


@pytest.mark.parametrize(
    ("pattern", "held"),
    [
        ("stem|stage[1-3]", {"stem_bn/bias", "stage1_block1/conv1/kernel"}),
        ("conv1", {"conv1/kernel"}),
        (".*kernel", {"conv1/kernel", "conv10/kernel", "stage1_block1/conv1/kernel"}),
        ("block1", set()),
        ("(?!stage).*", {"conv1/kernel", "conv10/kernel", "stem_bn/bias"}),
        ("", set()),
    ],
)
def test_a_pattern_goes_from_the_start_to_the_end_of_a_word(pattern, held):
    names = ("conv1/kernel", "conv10/kernel", "stem_bn/bias", "stage1_block1/conv1/kernel")
    assert {name for name in names if Freeze(pattern).holds(name)} == held


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": "stem"}, r"freeze='stem' matches no parameter; .* like classifier/bias"),
        ({"freeze": ".*"}, r"freeze='\.\*' matches every parameter: nothing is trained"),
        ({"freeze": "stage["}, r"freeze='stage\[' is no regular expression: unterminated"),
        ({"freeze": "conv.*", "rates": {"conv*": 2.0}}, r"no trained parameter is called"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0: must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(fields, message):
    config = normalize(
        Config(model=ModelConfig("lenet5_dense"), optimizer=OptimizerConfig(**fields))
    )
    with pytest.raises(UserError, match=f"^optimizer.*{message}"):
        validate(config)
        _ = Experiment(config, load_data(config)).facts


def test_rates_fall_with_the_layers_as_timm_numbers_those_of_resnet50():
    """timm 1.0: `param_groups_layer_decay(resnet50, layer_decay=d)`: d^17 for conv1 and bn1,
    d^16 for layer1.0, ..., d for layer4.2, 1 for fc.
    """
    layers = number_layers(create_model("resnet50"), (224, 224, 3))
    blocks = [f"stage{s}_block{b}" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(1, n + 1)]
    expected = {"stem_conv": 0, "stem_bn": 0, "classifier": 17}
    assert layers == expected | {name: i for i, name in enumerate(blocks, 1)}
    config = OptimizerConfig(name="sgd", layer_decay=0.5, rates=ConfigDict({"*bias": 3.0}))
    tx = make_optimizer(config, optax.constant_schedule(1.0), layers)
    ones = {name: {"kernel": jnp.ones(()), "bias": jnp.ones(())} for name in layers}
    updates, _ = tx.update(ones, tx.init(ones), ones)
    for name, layer in layers.items():
        assert updates[name]["kernel"] == -(0.5 ** (17 - layer))
        assert updates[name]["bias"] == -3 * 0.5 ** (17 - layer)
    assert len(list_paths(ones)) == 2 * len(layers)
