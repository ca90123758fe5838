"""Receptive fields: published ones, by hand, and against gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.analysis import extent, influence, receptive_fields
from flaxcnn.errors import UserError
from flaxcnn.layers import (
    Conv,
    ConvTranspose,
    SqueezeExcite,
    adaptive_avg_pool,
    avg_pool,
    max_pool,
)
from flaxcnn.models import create_model, variant

# Field, stride, padding of Araujo, Norris and Sim, Distill 2019 (google-research/receptive_field);
# their resnet_v1 has other strides.
ANCHORS = {
    ("alexnet_ungrouped", "conv1"): (11, 4, 0),
    ("alexnet_ungrouped", "max_pool"): (19, 8, 0),
    ("alexnet_ungrouped", "conv2"): (51, 8, 16),
    ("alexnet_ungrouped", "conv3"): (99, 16, 32),
    ("alexnet_ungrouped", "conv4"): (131, 16, 48),
    ("alexnet_ungrouped", "conv5"): (163, 16, 64),
    ("alexnet_ungrouped", "max_pool#3"): (195, 32, 64),
    ("vgg16", "max_pool"): (6, 2, 2),
    ("vgg16", "max_pool#2"): (16, 4, 6),
    ("vgg16", "max_pool#3"): (44, 8, 18),
    ("vgg16", "max_pool#4"): (100, 16, 42),
    ("vgg16", "max_pool#5"): (212, 32, 90),
    ("inception_v3", "mixed_5d"): (127, 8, 50),
    ("inception_v3", "mixed_6a"): (159, 16, 58),
    ("inception_v3", "mixed_6e"): (927, 16, 442),
    ("inception_v3", "mixed_7a"): (1055, 32, 490),
    ("inception_v3", "mixed_7c"): (1311, 32, 618),
    ("inception_resnet_v2", "stem_mixed"): (63, 8, 18),
    ("inception_resnet_v2", "reduction_a"): (415, 16, 186),
    ("inception_resnet_v2", "reduction_b"): (2399, 32, 1162),
    **{
        (f"resnet{depth}_v1", f"stage{i}"): (side, None, None)
        for depth, sides in {
            50: (35, 99, 291, 483),
            101: (35, 99, 835, 1027),
            152: (35, 163, 1315, 1507),
        }.items()
        for i, side in enumerate(sides, 1)
    },
}
DEEP = ("inception_resnet_v2", "resnet50_v1", "resnet101_v1", "resnet152_v1")
NETWORKS = sorted({network for network, _ in ANCHORS})


def first(fields):
    """The numbers of the first axis, after both have been found alike."""
    size, stride, padding, _ = fields
    assert len(set(size)) == len(set(stride)) == len(set(padding)) == 1
    return size[0], stride[0], padding[0]


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=[pytest.mark.zoo] * (n in DEEP)) for n in NETWORKS]
)
def test_published_fields(network):
    fields = receptive_fields(create_model(network), variant(network).input_shape)
    for (name, layer), expected in ANCHORS.items():
        if name == network:
            found = first(fields[layer])
            assert all(e in (f, None) for e, f in zip(expected, found, strict=True)), layer


class Paths(nn.Module):
    """Branches of different reach and alignment, joined by a sum and by channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(4, 3, 2, padding=(0, 1), name="stem")(x))
        wide = Conv(4, 3, dilation=2, name="wide")(x)
        pooled = avg_pool(max_pool(x, (3, 3), padding=1), (2, 2), padding=((0, 1), (1, 0)))
        x = jnp.concatenate([wide + x, pooled], -1)
        x = Conv(4, (3, 1), padding="VALID", name="tall")(x)
        return ConvTranspose(3, 4, 2, padding="VALID", name="up")(max_pool(x, (2, 2), (2, 2)))


def test_by_hand():
    fields = receptive_fields(Paths(), (32, 32, 2))
    assert fields["stem"][:3] == ((3, 3), (2.0, 2.0), (0.0, 1.0))
    assert fields["wide"][:3] == ((11, 11), (2.0, 2.0), (4.0, 5.0))
    # Pools reach from -1 to 2 rows and -2 to 1 columns: within what `wide` sees.
    assert fields["tall"][:3] == ((15, 11), (2.0, 2.0), (4.0, 5.0))
    # Maxima 2/2 step by 4 pixels and see (17, 13); a value sees two of them, either way.
    assert fields["up"][:3] == ((21, 17), (2.0, 2.0), (8.0, 9.0))
    assert not fields["up"].everywhere


def test_a_field_of_one_dimension():
    class Causal(nn.Module):
        @nn.compact
        def __call__(self, x):
            for dilation in (1, 2, 4):
                x = Conv(2, 2, padding="CAUSAL", dilation=dilation, name=f"by{dilation}")(x)
            return x

    fields = receptive_fields(Causal(), (16, 2))
    assert [field.size for field in fields.values()] == [(2,), (4,), (8,)]
    assert fields["by4"].padding == (7.0,)


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = SqueezeExcite(2, name="gate")(Conv(4, 3, name="conv")(x))
        x = Conv(2, 3, name="after")(x)
        bins = adaptive_avg_pool(x, 1)
        return nn.Dense(3, name="dense")(bins.reshape(len(x), -1))


def test_local_and_global():
    fields = receptive_fields(Gated(), (9, 9, 2))
    assert not fields["conv"].everywhere
    assert fields["after"].size == fields["dense"].size == (5, 5)
    assert fields["gate"].everywhere and fields["after"].everywhere and fields["dense"].everywhere
    reached = influence(Gated(), (9, 9, 2), "after")
    assert extent(reached) == (9, 9)  # by the gate


@pytest.mark.parametrize(
    ("model", "side", "layer"),
    [
        (Paths(), 32, "tall"),
        pytest.param(create_model("cifar_cnn_k2"), 32, "conv3", marks=pytest.mark.zoo),
        pytest.param(create_model("nin_cifar10"), 64, "stage2", marks=pytest.mark.zoo),
        pytest.param(create_model("vgg16"), 256, "pool5", marks=pytest.mark.zoo),
        pytest.param(create_model("inception_v3"), 299, "mixed_6a", marks=pytest.mark.zoo),
        pytest.param(create_model("densenet121"), 128, "stage1", marks=pytest.mark.zoo),
        pytest.param(create_model("nasnet_a_mobile"), 128, "stage1", marks=pytest.mark.zoo),
    ],
    ids=lambda x: getattr(x, "name", None) or type(x).__name__,
)
def test_formula_and_gradient_agree(model, side, layer):
    shape = (side, side, 2 if isinstance(model, Paths) else 3)
    fields = receptive_fields(model, shape)
    assert extent(influence(model, shape, layer)) == fields[layer].size


def test_the_effective_field_is_within():
    model, rng = Gated(), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 9, 9, 2)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    reached = influence(model, (9, 9, 2), "conv", variables, images)
    assert extent(reached) == (3, 3)

    @jax.jit
    @jax.grad
    def gradient(x):  # by Flax's own way to a layer's output
        _, state = model.apply(variables, x, capture_intermediates=True)
        return state["intermediates"]["conv"]["__call__"][0][:, 4, 4].sum()

    expected = jnp.abs(gradient(images)).sum(-1).mean(0)
    np.testing.assert_allclose(reached, expected, rtol=1e-4, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(UserError, match="no layer or stage is called 'conv9'; there are .*conv1"):
        influence(create_model("cifar_cnn_k2"), (32, 32, 3), "conv9")
    with pytest.raises(UserError, match="together, or neither"):
        influence(create_model("cifar_cnn_k2"), (32, 32, 3), "conv1", images=jnp.ones((1, 4, 4, 3)))
    with pytest.raises(UserError, match="the network cannot take 4x4x3 images"):
        receptive_fields(nn.Sequential([Conv(3, 2), nn.Dense(2.5)]), (4, 4, 3))  # pyright: ignore
