"""Initialisers of kernels by name."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from flaxcnn.errors import UserError


def random_uniform(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform in [-0.05, 0.05) whatever the layer's size, as Keras's RandomUniform."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


# The variance of a kernel with `fan_in` inputs and `fan_out` outputs to each unit. The normal ones
# are cut at two standard deviations and widened to have it all the same, as Keras's.
INITIALIZERS: dict[str, Initializer] = {
    "glorot_normal": nn.initializers.glorot_normal(),  # 2 / (fan_in + fan_out)
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "he_normal": nn.initializers.he_normal(),  # 2 / fan_in
    "he_uniform": nn.initializers.he_uniform(),
    "lecun_normal": nn.initializers.lecun_normal(),  # 1 / fan_in
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "orthogonal": nn.initializers.orthogonal(),  # the matrix [inputs, outputs]
    "random_uniform": random_uniform,  # 0.05**2 / 3
    "zeros": nn.initializers.zeros,
}


def get_initializer(initializer: str | Initializer) -> Initializer:
    """Looks an initialiser up by name; passes a function (key, shape, dtype) -> array through.

    Glorot and Bengio 2010 (equation 16), He et al. 2015 (equation 10), LeCun et al. 1998 (section
    4.6), Saxe et al. 2014. Raises UserError for a name that is not in `INITIALIZERS`.
    """
    if callable(initializer):
        return initializer
    if initializer not in INITIALIZERS:
        known = ", ".join(INITIALIZERS)
        raise UserError(f"unknown initializer {initializer!r}: it is one of {known}")
    return INITIALIZERS[initializer]
