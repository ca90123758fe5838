import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import init
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.models.small_cnn import VARIANTS, smallest_side

# Parameters of each layer, in order: shared/reference/zoo.md, section 2, and for the last three
# networks by hand. BatchNorm has its scale and bias.
LAYERS = {
    "mnist_cnn_chollet": (320, 18_496, 36_928, 36_928, 650),
    "cats_dogs_cnn": (896, 18_496, 73_856, 147_584, 3_211_776, 513),
    "mnist_cnn_220k": (320, 18_496, 200_768, 650),
    "cifar_cnn_k2": (208, 2_080, 8_256, 512_500, 5_010),
    "cifar_cnn_5x5": (9_728, 204_864, 102_464, 26_215_424, 262_400, 2_570),
    "cifar_cnn_5x5_bn": (
        *(9_728, 256, 204_864, 128, 102_464, 128),
        *(1_049_600, 262_400, 2_570),
    ),
    "fashion_mnist_cnn_geron": (
        *(3_200, 73_856, 147_584, 295_168, 590_080),
        *(295_040, 8_256, 650),
    ),
    "mnist_tiny": (80, 16, 1_168, 32, 2_320, 32, 2_320, 32, 3_480, 48, 250),
    "mnist_cnn_280k": (
        *(832, 64, 18_496, 128, 36_928, 128),
        *(73_856, 256, 147_584, 256, 1_290),
    ),
    "digits_cnn": (320, 64, 18_496, 128, 16_448, 650),
}


def init_shapes(model, input_shape):
    images = jnp.zeros((1, *input_shape))
    return jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))


def test_every_table_is_counted_here():
    assert set(LAYERS) == set(VARIANTS) - {"cats_dogs_cnn_dropout"}


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_per_layer(name):
    params = init_shapes(create_model(name), variant(name).input_shape)["params"]
    depth = {"conv": 0, "fc": 1, "classifier": 2}

    def position(layer):
        kind = layer.rstrip("0123456789_bn") if layer != "classifier" else layer
        return depth[kind], layer

    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(params[layer]))
        for layer in sorted(params, key=position)
    ]
    assert tuple(counts) == LAYERS[name]


def test_mnist_tiny_has_fewer_than_10000_parameters():
    assert sum(LAYERS["mnist_tiny"]) < 10_000


def test_a_network_is_its_layers_in_order():
    model = create_model("cifar_cnn_5x5_bn")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 20, 3)), jnp.float32)
    draw = np.random.default_rng(1).uniform
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(draw(0.1, 0.3, leaf.shape) - 0.19, jnp.float32),
        init_shapes(model, (20, 20, 3)),
    )
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])
    p, statistics = variables["params"], variables["batch_stats"]

    def conv(layer, x):
        features = p[layer]["bias"].size
        x = nn.relu(nn.Conv(features, (5, 5), padding="VALID").apply({"params": p[layer]}, x))
        s, bn = statistics[f"{layer}_bn"], p[f"{layer}_bn"]
        scale = np.asarray(bn["scale"]) / np.sqrt(np.asarray(s["var"]) + 1e-5)
        return (np.asarray(x) - np.asarray(s["mean"])) * scale + np.asarray(bn["bias"])

    def pool(x):
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))

    x = pool(conv("conv3", pool(conv("conv2", conv("conv1", images))))).reshape(2, -1)
    for layer in ("fc1", "fc2"):
        x = np.maximum(x @ np.asarray(p[layer]["kernel"]) + np.asarray(p[layer]["bias"]), 0)
    expected = x @ np.asarray(p["classifier"]["kernel"]) + np.asarray(p["classifier"]["bias"])
    logits = model.apply(variables, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_global_pool_averages_the_last_maps():
    model = create_model("mnist_tiny", num_classes=0)
    images = jnp.ones((2, 28, 28, 1))
    assert init_shapes(model, (28, 28, 1))["params"].keys() == {
        f"conv{i}{bn}" for i in range(1, 6) for bn in ("", "_bn")
    }
    features, state = jax.jit(
        lambda variables: model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
    )(init(model, images))
    maps = np.asarray(state["intermediates"]["conv5_bn"]["__call__"][0])
    assert maps.shape == (2, 7, 7, 24)
    np.testing.assert_allclose(features, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_initial_weights_are_glorot_uniform():
    variables = init(create_model("mnist_cnn_220k"), jnp.zeros((1, 28, 28, 1)))
    for name, fans in {"conv2": 9 * (32 + 64), "fc1": 3136 + 64}.items():
        kernel = np.asarray(variables["params"][name]["kernel"])
        bound = (6 / fans) ** 0.5
        assert 0.99 * bound < abs(kernel).max() <= bound * (1 + 1e-6)
        assert abs(kernel.std() - bound / 3**0.5) < 0.02 * bound
        assert not variables["params"][name]["bias"].any()


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("mnist_cnn_chollet", 18),
        ("mnist_cnn_220k", 4),
        ("cats_dogs_cnn", 46),
        ("cifar_cnn_k2", 8),
        ("cifar_cnn_5x5", 13),
    ],
)
def test_images_too_small_for_the_maps_are_refused(name, side):
    model = create_model(name)
    assert init_shapes(model, (side, side + 3, 1))["params"]["fc1"]["kernel"].shape[0] > 0
    message = rf"(?m)^SmallCNN needs images of at least {side}x{side}, .* got {side - 1}x40x1$"
    with pytest.raises(UserError, match=message):
        init_shapes(model, (side - 1, 40, 1))


def test_smallest_side_leaves_one_pixel():
    assert smallest_side(((8, 3), "pool", (8, 5)), "VALID") == 12
    assert smallest_side(((8, 3), "pool", (8, 5)), "SAME") == 2


def test_dropout_is_where_it_is_asked_for():
    images = jnp.ones((2, 48, 48, 3))
    for name, layers in {
        "cats_dogs_cnn": set(),
        "cats_dogs_cnn_dropout": {"maps_dropout"},
        "fashion_mnist_cnn_geron": {"fc1_dropout", "fc2_dropout"},
    }.items():
        model = create_model(name)
        variables = init_shapes(model, (48, 48, 3))
        _, state = jax.eval_shape(
            lambda v, m=model: m.apply(
                v,
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                capture_intermediates=lambda module, _: getattr(module, "rate", 0) > 0,
                mutable=["intermediates"],
            ),
            variables,
        )
        assert set(state.get("intermediates", {})) == layers, name
