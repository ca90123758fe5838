"""Products that round alike in every program.

A compiler may turn `a * b + c` into one instruction that rounds once instead of twice, and whether
it does depends on what else it compiles beside it: on the size of a device's part of the batch, for
one. What stands between the product and the sum here keeps the two apart.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_BEYOND = 1e30


def product(a: Array | float, b: Array | float) -> Array:
    """`a * b`, rounded before anything is added to it."""
    return jnp.clip(jnp.asarray(a) * b, -_BEYOND, _BEYOND)


def lerp(a: Array, b: Array, share: Array) -> Array:
    """`a` at share 0, `b` at 1."""
    return product(a, 1 - share) + product(b, share)


def uniform(key: Array, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    """Uniform float32 in low..high."""
    return low + product(jax.random.uniform(key, shape), high - low)
