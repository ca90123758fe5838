"""BatchNorm folded into what precedes it: the same outputs, fewer operations, and what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_network, evaluate, init_shapes, relative_error
from flax import linen as nn

import flaxcnn
from flaxcnn import layers
from flaxcnn.errors import UserError

# Network, arguments that make it small, side, BatchNorms in all and those that stay: what comes
# before a convolution, or after a sum, a concatenation, an activation or a pool.
FEW = {"depths": (1, 1, 1, 1)}
SMALL = [
    ("airbench94", {}, 32, 6, 3),
    ("densenet121", FEW, 32, 13, 8),
    ("mobilenet_v1_0.25_128", {}, 32, 27, 0),
    ("resnet18", FEW, 32, 12, 0),
    ("resnetv2_50", FEW, 32, 13, 5),
]
LARGER = [
    ("bn_inception", {}, 32, 69, 0),
    ("cifar_cnn_5x5_bn", {}, 32, 3, 3),
    ("darknet19", {}, 32, 18, 0),
    ("googlenet", {}, 32, 57, 0),
    ("inception_resnet_v2", {"depths": (1, 1, 2)}, 75, None, 0),
    ("inception_v3", {}, 75, 94, 0),
    ("inception_v4", {"depths": (1, 1, 1)}, 75, None, 0),
    ("mobilenet_v2_0.35_96", {}, 32, 52, 0),
    ("nasnet_a_mobile_slim", {"cells": 1}, 32, 83, 4),
    ("resnext50_32x4d", FEW, 32, 17, 0),
    ("senet154_timm", FEW, 32, 19, 0),
    ("vgg11_bn", {}, 32, 8, 0),
    ("xception", {}, 71, 40, 0),
]


@pytest.mark.parametrize(
    ("name", "arguments", "side", "norms", "left"),
    SMALL + [pytest.param(*case, marks=pytest.mark.zoo) for case in LARGER],
)
def test_networks(name, arguments, side, norms, left):
    images = draw_images(2, side, side, 3)
    model, variables = draw_network(name, images, **arguments)
    folded, fewer = flaxcnn.fold_batch_norm(model, variables)
    assert norms in (None, count_roots(model, variables, images))
    assert count_roots(folded, fewer, images) == left
    expected = evaluate(model, variables, images)
    assert relative_error(evaluate(folded, fewer, images), expected) < 1e-5


class Layers(nn.Module):
    """Each kind of layer with a BatchNorm that can be folded; `foldable` ends its name."""

    @nn.compact
    def __call__(self, x, *, train):
        norm = layers.BatchNorm(not train, name="image_bn")
        x = norm(x)
        for conv in (
            layers.Conv(6, 3, strides=2, groups=3, name="grouped"),
            layers.DepthwiseConv(3, multiplier=2, use_bias=False, name="depthwise"),
            layers.SeparableConv(4, 3, use_bias=False, name="separable"),
            layers.ConvTranspose(6, 2, strides=2, groups=2, name="transposed"),
            nn.Conv(5, (3, 3), mask=jnp.ones((3, 3, 6, 5)).at[0].set(0), name="masked"),
            nn.ConvTranspose(4, (2, 2), use_bias=False, name="flax_transposed"),
        ):
            x = conv(x)
            x = nn.relu(layers.BatchNorm(not train, epsilon=0.1, name=f"{conv.name}_foldable")(x))
        x = nn.remat(
            lambda module, x: nn.BatchNorm(not train, name="a_foldable")(nn.Conv(8, 1)(x))
        )(self, x)
        x = nn.Dense(7, name="dense")(x.mean((1, 2)))
        return nn.BatchNorm(not train, use_scale=False, name="dense_foldable")(x)


class Others(nn.Module):
    """Each BatchNorm is after a convolution, and none can be folded."""

    @nn.compact
    def __call__(self, x, *, train):
        def norm(x, **arguments):
            return layers.BatchNorm(not train, **arguments)(x)

        read_twice = layers.Conv(6, 1)(x)
        x = norm(read_twice) + read_twice
        shared = layers.Conv(6, 1)
        x = norm(shared(x)) + norm(shared(x))
        shared = layers.BatchNorm(not train)
        x = shared(layers.Conv(6, 1)(x)) + shared(layers.Conv(6, 1)(x))
        x = norm(nn.relu(layers.Conv(6, 1)(x)))
        x = norm(layers.Conv(6, 1)(x), axis=1)
        x = norm(layers.ConvTranspose(6, 1, transpose_kernel=True)(x))
        x = norm(layers.Conv(6, 1, dtype=jnp.bfloat16)(x))
        return norm(layers.Conv(6, 1)(x), dtype=jnp.bfloat16).astype(jnp.float32)


def test_kinds_of_layers():
    images = draw_images(2, 6, 6, 3)
    variables = draw_variables(Layers(), images)
    folded, fewer = flaxcnn.fold_batch_norm(Layers(), variables, (6, 6, 3))
    assert set(fewer["batch_stats"]) == {"image_bn"}
    assert set(fewer["params"]) == {n for n in variables["params"] if not n.endswith("foldable")}
    assert fewer["params"]["depthwise"]["bias"].shape == (12,)
    expected = evaluate(Layers(), variables, images)
    assert relative_error(evaluate(folded, fewer, images), expected) < 1e-5


def test_what_cannot_be_folded_stays():
    model = Others()
    variables = draw_variables(model, draw_images(2, 6, 6, 3))
    same, kept = flaxcnn.fold_batch_norm(model, variables, (6, 6, 3))
    assert same is model and kept == variables


class Scanned(nn.Module):
    """Two layers whose parameters lie in one array."""

    @nn.compact
    def __call__(self, x, *, train):
        def block(module, x, _):
            return layers.BatchNorm(not train)(layers.Conv(3, 1)(x)), None

        scan = nn.scan(
            block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return scan(self, x, None)[0]


def test_stacked_layers_stay():
    variables = draw_variables(Scanned(), draw_images(2, 6, 6, 3))
    assert flaxcnn.fold_batch_norm(Scanned(), variables)[0] == Scanned()


def test_input_shape_matters_only_for_a_network_that_insists():
    """Dense layers after flattening and other channels do not, a reshape does."""

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = layers.BatchNorm(not train)(layers.Conv(2, 3)(x))
            return x.reshape(-1, 6, 6, 2)

    images = draw_images(1, 6, 6, 1)
    variables = draw_variables(Fixed(), images)
    with pytest.raises(UserError, match="input_shape: the network cannot take 224x224x3 images"):
        flaxcnn.fold_batch_norm(Fixed(), variables)
    folded, fewer = flaxcnn.fold_batch_norm(Fixed(), variables, (6, 6, 1))
    expected = evaluate(Fixed(), variables, images)
    assert relative_error(evaluate(folded, fewer, images), expected) < 1e-5


def test_a_folded_network_is_for_inference():
    images = draw_images(1, 32, 32, 3)
    folded, fewer = flaxcnn.fold_batch_norm(*draw_network("resnet18", images, **FEW))
    with pytest.raises(UserError, match="cannot be trained"):
        folded.apply(fewer, images, train=True)
    with pytest.raises(UserError, match="variables that fold_batch_norm returned"):
        folded.init(jax.random.key(0), images, train=False)
    assert flaxcnn.fold_batch_norm(folded, fewer)[0] is folded
    assert hash(folded) == hash(folded.clone())  # a static argument of jit


def draw_images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def draw_variables(model, images):
    rng = np.random.default_rng(0)
    shapes = init_shapes(model, images)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype("f4"), shapes)


def count_roots(model, variables, images):
    """Each BatchNorm takes one root of its variance, and nothing else in these networks does."""
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return str(jaxpr).count("rsqrt")
