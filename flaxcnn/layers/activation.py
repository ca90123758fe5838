"""Activation functions by name."""

import difflib
from collections.abc import Callable

import jax
from flax import linen as nn

from flaxcnn.errors import UserError

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "celu": nn.celu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "hard_sigmoid": nn.hard_sigmoid,
    "hard_swish": nn.hard_swish,
    "hard_tanh": nn.hard_tanh,
    "leaky_relu": nn.leaky_relu,
    "linear": lambda x: x,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "softplus": nn.softplus,
    "softsign": nn.soft_sign,
    "swish": nn.swish,
    "tanh": nn.tanh,
}


def get_activation(activation: str | Activation) -> Activation:
    """Looks an activation up by name; passes a function through.

    Raises UserError for a name that is not in `ACTIVATIONS`.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        close = difflib.get_close_matches(activation, ACTIVATIONS) or sorted(ACTIVATIONS)
        raise UserError(f"unknown activation {activation!r}: did you mean {', '.join(close)}?")
    return ACTIVATIONS[activation]
