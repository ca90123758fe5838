"""Which dtype a layer computes in, also under `jax.numpy_dtype_promotion("strict")`."""

import functools

import jax
import jax.numpy as jnp
from flax.typing import Dtype

Array = jax.Array


def promote(*dtypes: Dtype) -> jnp.dtype:
    """The least dtype that holds all of these, by JAX's standard rules."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def mean_dtype(x: Array) -> jnp.dtype:
    """The dtype of means and noisy values of x: its own, or float32 for integers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
