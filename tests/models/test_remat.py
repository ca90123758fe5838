"""`remat=True`: the same values, gradients, statistics and noise, and less is kept for them.

What is kept is read off the trace: XLA:CPU drops the barriers that hold the two computations apart,
and computes once again what it finds twice.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count_values
from test_zoo import SMALLEST

from flaxcnn.models import create_model, variant

NOISE = {"drop_path": 0.3, "dropout": 0.3}


def make_step(model, shape):
    """A training step's loss, updates and gradient as a function of variables and images [4]."""
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def loss(params, variables, images):
        outputs, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats", "intermediates"],
        )
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(outputs)), updates

    def step(variables, images):
        params = variables["params"]
        return jax.value_and_grad(loss, has_aux=True)(params, variables, images)

    return step, shapes, images


def draw(tree):
    """Arrays of these shapes, between 0.1 and 1."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.uniform(0.1, 1, x.shape).astype(x.dtype), tree)


SMALL = {
    "resnet18": {"depths": (2,), "features": 4, **NOISE},  # functions, with noise between blocks
    "densenet121": {"depths": (2,), "growth": 4, "stem_features": 8, "dropout": 0.3},  # modules
}


@pytest.mark.parametrize("name", ["resnet18", pytest.param("densenet121", marks=pytest.mark.zoo)])
def test_values_gradients_statistics_and_noise_are_the_same(name):
    results, kept = [], []
    for remat in (False, True):
        model = create_model(name, num_classes=3, remat=remat, **SMALL[name])
        step, *shapes = make_step(model, (8, 8, 3))
        results.append(jax.jit(step)(*draw(shapes)))
        kept.append(count_kept(model, *shapes))
    (plain, again) = results
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(plain[1]))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * scale)
    assert kept[1] < 0.6 * kept[0]


def count_kept(model, variables, images):
    """Values that the forward pass keeps for the backward pass, parameters and images included."""

    def forward(variables, images):
        def apply(params):
            rngs = {"dropout": jax.random.key(1)}
            both = {**variables, "params": params}
            return model.apply(both, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

        return jax.vjp(apply, variables["params"])[1]

    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(forward, variables, images)))


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(SMALLEST.values()))
def test_every_network_can_be_computed_again(name):
    """Traced, with all noise: blocks are computed again, and less is kept."""
    fields = create_model(name).__dataclass_fields__
    noise = {key: rate for key, rate in NOISE.items() if key in fields}
    shape = variant(name).input_shape
    models = [create_model(name, remat=remat, **noise) for remat in (False, True)]
    _, *shapes = make_step(models[0], shape)
    steps = [make_step(model, shape)[0] for model in models]
    assert jax.eval_shape(steps[0], *shapes) == jax.eval_shape(steps[1], *shapes)
    kept = [count_kept(model, *shapes) - count_values(shapes[0]) for model in models]
    assert kept[1] < 0.8 * kept[0]


def test_features_and_a_network_without_training_are_left_alone():
    model = create_model("resnet18", features_only=True, remat=True, **SMALL["resnet18"])
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    maps, variables = jax.eval_shape(init, images)
    outputs = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    assert outputs == maps and [m.shape for m in maps] == [(1, 16, 16, 4), (1, 8, 8, 4)]
