"""Inception-v4: what is particular to it."""

import functools

import jax
import jax.numpy as jnp
import pytest
from counting import count_values
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models.inception_v4 import Branches


def trace(name, shape, **kwargs):
    model = create_model(name, num_classes=10, **kwargs)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )


def test_smallest_and_odd_sizes():
    for shape in ((1, 75, 75, 3), (1, 86, 131, 3), (1, 320, 299, 1)):
        assert trace("inception_v4", shape)[0].shape == (1, 10)
    with pytest.raises(UserError, match="^InceptionV4 needs images of at least 75x75, .*got 74x80"):
        trace("inception_v4", (1, 74, 80, 3))


def test_without_a_scale_it_has_the_parameters_of_tf_slim():
    model = create_model("inception_v4", norm_scale=False)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 75, 75, 3))
    )
    assert count_values(variables["params"]) == 42_648_232


def test_notation_of_branches():
    """Heights come before widths; V and /2 leave the border out; + sees the same maps."""

    def conv(features, size, stride, padding, name):
        calls.append((name, features, size, stride, padding))
        return lambda x: jnp.zeros((1, 9 // stride, 9 // stride, features))

    calls = []
    unit = functools.partial(ConvUnit, conv=conv, norm=lambda name: lambda x: x)
    layout = "avg 8@1x7 | 4@3 2@1x3+3@3x1 | 5@1V"
    y = Branches(layout, unit).apply({}, jnp.zeros((1, 9, 9, 3)))
    assert y.shape == (1, 9, 9, 8 + 2 + 3 + 5)
    Branches("6@3/2", unit).apply({}, jnp.zeros((1, 9, 9, 3)))
    assert calls == [
        ("conv", 8, (1, 7), 1, "SAME"),
        ("conv", 4, (3, 3), 1, "SAME"),
        ("conv", 2, (1, 3), 1, "SAME"),
        ("conv", 3, (3, 1), 1, "SAME"),
        ("conv", 5, (1, 1), 1, "VALID"),
        ("conv", 6, (3, 3), 2, "VALID"),
    ]


def test_paths():
    """Names of parameters are public."""
    params = trace("inception_v4", (1, 75, 75, 3))[1]["params"]
    paths = {"/".join(path) for path in traverse_util.flatten_dict(params)}
    assert paths >= {
        "stem_conv1/conv/kernel",
        "stem_mixed1/branch2_conv1/bn/scale",
        "inception_a4/branch4_conv1/conv/kernel",
        "reduction_b/branch2_conv4/bn/bias",
        "inception_c3/branch3_conv4b/conv/kernel",
        "classifier/kernel",
    }
