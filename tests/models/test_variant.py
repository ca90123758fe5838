"""What holds for the textbooks' networks: size, gradients, interface. For the zoo see test_zoo."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count_multiply_adds, count_values, equations, multiply_adds
from flax import nnx

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant

# Trainable parameters, statistics and multiply-adds, from shared/reference/zoo.csv;
# the last three networks are flaxcnn's own and are counted layer by layer in test_small_cnn.
SIZES = {
    "cats_dogs_cnn": (3_453_121, 0, 236_095_488),
    "cats_dogs_cnn_dropout": (3_453_121, 0, 236_095_488),
    "cifar_cnn_5x5": (26_797_450, 0, 192_930_304),
    "cifar_cnn_5x5_bn": (1_632_138, 512, 133_358_080),
    "cifar_cnn_k2": (528_054, 0, 1_762_184),
    "cifar_mlp": (3_411_722, 0, 3_410_432),
    "fashion_mnist_cnn_geron": (1_413_834, 0, 89_466_496),
    "lenet5_1998": (60_000, 0, 326_520),
    "lenet5_dense": (61_706, 0, 416_520),
    "lenet_caffe": (431_080, 0, 2_293_000),
    "mnist_cnn_220k": (220_234, 0, 4_039_808),
    "mnist_cnn_chollet": (93_322, 0, 2_794_240),
    "mnist_mlp_512": (669_706, 0, 668_672),
    "mnist_tiny": (9_778, 160, 2_032_368),
    "mnist_cnn_280k": (279_818, 832, 22_304_512),
    "digits_cnn": (36_106, 192, 330_368),
}
# Images this small keep the dense layers after unpooled maps small.
SMALL_SIDES = {
    "cats_dogs_cnn": 48,
    "cats_dogs_cnn_dropout": 48,
    "cifar_cnn_5x5": 14,
    "cifar_cnn_5x5_bn": 20,
    "fashion_mnist_cnn_geron": 8,
}
each_model = pytest.mark.parametrize("name", sorted(SIZES))


@functools.cache
def shapes(model, input_shape):
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def random(seed, shape, scale):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def small(name, **kwargs):
    """Makes the network, images of a moderate size for it, and variables without compiling."""
    model = create_model(name, **kwargs)
    height, _, channels = variant(name).input_shape
    side = SMALL_SIDES.get(name, height)
    images = random(0, (3, side, side, channels), 1)
    variables = {
        "batch_stats": {},
        **jax.tree.map(
            lambda leaf: random(leaf.size, leaf.shape, 0.1), shapes(model, images.shape[1:])
        ),
    }
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return model, images, variables


@each_model
def test_size(name):
    v = variant(name)
    assert (v.params, v.statistics, v.macs) == SIZES[name]
    variables = shapes(create_model(name), v.input_shape)
    assert set(variables) <= {"params", "batch_stats"}
    assert count_values(variables["params"]) == v.params
    assert count_values(variables.get("batch_stats", {})) == v.statistics
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_reference_table(shared):
    with open(shared / "reference" / "zoo.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    own = {"mnist_tiny", "mnist_cnn_280k", "digits_cnn", "cats_dogs_cnn_dropout"}
    for name in set(SIZES) - own:
        v, row = variant(name), rows[name]
        assert v.params == int(row["params_trainable"]), name
        assert v.statistics == int(row["params_non_trainable"]), name
        assert v.macs == int(row["macs"]), name
        assert v.input_shape == tuple(map(int, row["input"].split("x"))), name
        assert row["year"] in ("", str(v.year)), name


@each_model
def test_multiply_adds(name):
    v = variant(name)
    model = create_model(name)
    variables = shapes(model, v.input_shape)
    images = jax.ShapeDtypeStruct((1, *v.input_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    counted = count_multiply_adds(jaxpr.jaxpr)
    if name == "lenet5_1998":
        # C3 computes the connections that Table I leaves out, and the distances to the ten
        # bitmaps are no matrix product.
        counted += 10 * 84 - (96 - 60) * 25 * 100
    assert counted == v.macs


# With dropout off, cats_dogs_cnn_dropout computes what cats_dogs_cnn does: see below.
@pytest.mark.parametrize("name", sorted(set(SIZES) - {"cats_dogs_cnn_dropout"}))
def test_every_parameter_gets_a_gradient(name):
    model, images, variables = small(name)

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.sin(model.apply({**variables, "params": params}, images, train=False)).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        leaf = np.asarray(leaf)
        assert np.isfinite(leaf).all() and leaf.any(), jax.tree_util.keystr(path)


NOISY = {
    "cats_dogs_cnn_dropout": {},
    "cifar_mlp": {"noise": 0.1, "gaussian_dropout": 0.2, "dropout": 0.3},
    "digits_cnn": {},
    "fashion_mnist_cnn_geron": {},
}
NORMALIZED = {name for name, (_, statistics, _) in SIZES.items() if statistics}


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(NOISY) - NORMALIZED))
def test_training_computes_what_evaluation_does(name):
    model, images, variables = small(name)
    training, evaluation = (
        str(jax.make_jaxpr(lambda v, x, t=train: model.apply(v, x, train=t))(variables, images))
        for train in (True, False)
    )
    assert training == evaluation


@pytest.mark.parametrize("name", sorted(NORMALIZED | set(NOISY)))
def test_training_draws_noise_and_updates_statistics(name):
    model, images, variables = small(name, **NOISY.get(name, {}))

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])

    logits, updates = train(jax.random.key(0))
    again, _ = train(jax.random.key(1))
    assert np.array_equal(logits, again) == (name not in NOISY)
    old, new = variables["batch_stats"], updates.get("batch_stats", {})
    assert bool(new) == (name in NORMALIZED)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), old, new)))
    evaluate = jax.jit(lambda: model.apply(variables, images, train=False))
    assert not np.allclose(evaluate(), logits, atol=1e-3)


@each_model
def test_interface(name):
    v = variant(name)
    model = create_model(name, dtype=jnp.bfloat16)
    variables = shapes(model, v.input_shape)
    images = jax.ShapeDtypeStruct((3, *v.input_shape), jnp.float32)

    def apply(model, **kwargs):
        return jax.eval_shape(
            lambda v, x: model.apply(v, x, train=False, **kwargs), variables, images
        )

    logits = apply(model)
    assert (logits.shape, logits.dtype) == ((3, v.kwargs["num_classes"]), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    headless = create_model(name, num_classes=0)
    features = apply(headless)
    assert features.ndim == 2 and features.dtype == jnp.float32
    assert "classifier" not in shapes(headless, v.input_shape)["params"]
    with pytest.raises(TypeError, match="train"):
        model.apply(variables, images)


@pytest.mark.parametrize("name", ["lenet5_1998", "lenet5_dense", "mnist_mlp_512", "mnist_tiny"])
def test_bfloat16_is_computed_and_close(name):
    model, images, variables = small(name)
    low = create_model(name, dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda v, x: low.apply(v, x, train=False))(variables, images)
    heavy = [e.invars[0].aval.dtype for e in equations(jaxpr.jaxpr) if multiply_adds(e)]
    assert set(heavy[:-1]) == {jnp.dtype("bfloat16")}  # the last is the float32 classifier
    exact, rough = (
        jax.jit(lambda m=m: m.apply(variables, images, train=False))() for m in (model, low)
    )
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.03 * float(jnp.abs(exact).max()))


@each_model
def test_arrays_that_are_no_images_are_refused(name):
    model = create_model(name)
    with pytest.raises(UserError, match=r"(?m)needs images \[N, H, W, C\], got .*\(28, 28\)$"):
        model.init(jax.random.key(0), jnp.zeros((28, 28)), train=False)


def test_runs_under_nnx():
    model, images, _ = small("mnist_tiny")

    @nnx.jit
    def make():
        module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
        return nnx.bridge.lazy_init(module, images[:1], train=False)

    @nnx.jit
    def train(module):
        return module(images, train=True, mutable=["batch_stats"])

    module = make()
    variables = {
        "params": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
        "batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
    }
    expected, updates = jax.jit(
        lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])
    )(variables)
    np.testing.assert_allclose(train(module), expected, rtol=1e-5, atol=1e-5)
    mean = module.conv1_bn["mean"].get_value()
    np.testing.assert_allclose(mean, updates["batch_stats"]["conv1_bn"]["mean"], rtol=1e-5)
