import math

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.layers import ACTIVATIONS, get_activation

# f(-1.5) and f(2.0) by hand
VALUES = {
    "celu": (math.expm1(-1.5), 2),
    "elu": (math.expm1(-1.5), 2),
    "gelu": (-1.5 * 0.0668072, 2 * 0.9772499),
    "hard_sigmoid": (0.25, 5 / 6),
    "hard_swish": (-0.375, 5 / 3),
    "hard_tanh": (-1, 1),
    "leaky_relu": (-0.015, 2),
    "linear": (-1.5, 2),
    "relu": (0, 2),
    "relu6": (0, 2),
    "selu": (1.0507010 * 1.6732632 * math.expm1(-1.5), 1.0507010 * 2),
    "sigmoid": (1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-2))),
    "softplus": (math.log1p(math.exp(-1.5)), math.log1p(math.exp(2))),
    "softsign": (-0.6, 2 / 3),
    "swish": (-1.5 / (1 + math.exp(1.5)), 2 / (1 + math.exp(-2))),
    "tanh": (math.tanh(-1.5), math.tanh(2)),
}


def test_every_name_is_listed_here():
    assert set(VALUES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    # flax's gelu is the tanh approximation, 1e-3 from the exact one
    tolerance = 1e-3 if name == "gelu" else 1e-5
    y = get_activation(name)(jnp.array([-1.5, 2.0]))
    np.testing.assert_allclose(y, VALUES[name], atol=tolerance)


def test_a_function_passes_through():
    assert get_activation(jnp.sin) is jnp.sin


def test_an_unknown_name_is_told_with_the_closest():
    with pytest.raises(UserError, match=r"unknown activation 'rleu'.*relu"):
        get_activation("rleu")
    with pytest.raises(UserError, match=r"celu, elu"):
        get_activation("zzz")
