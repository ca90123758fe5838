"""Values per channel and maps [N, *size, C]: one spread over the other, the other summed to one.

Each is the other's transpose, so derivatives of any order stay fast. On CPU both go in two steps,
by way of [N, *all but the last size, C]: XLA:CPU runs a sum over all positions at once as a walk
with the stride of a whole image per channel, if it computes what it sums on the way
(docs/adr/0012).
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flaxcnn.layers.barriers import keep_apart

Array = jax.Array


def broadcast_channels(values: Array, like: Array) -> Array:
    """Repeats values [C] at every position of maps of the shape and sharding of `like`."""
    if values.dtype in (
        jnp.bfloat16,
        jnp.float16,
    ):  # so that the gradient, a sum, is one of float32
        return broadcast_channels(values.astype(jnp.float32), like).astype(values.dtype)
    shape, sharding = like.shape, explicit_sharding(like)
    if len(shape) > 2:
        row = sharding and sharding.update(spec=P(*sharding.spec[:-2], None, sharding.spec[-1]))
        rows = jnp.broadcast_to(values, (*shape[:-2], 1, shape[-1]), out_sharding=row)
        return jnp.broadcast_to(keep_apart(rows), shape, out_sharding=sharding)
    return jnp.broadcast_to(values, shape, out_sharding=sharding)


def sum_per_channel(x: Array) -> Array:
    """Sums maps [N, *size, C] over examples and positions to [C]."""
    if x.ndim > 2:
        x = keep_apart(x.sum(-2))
    return x.sum(tuple(range(x.ndim - 1)))


def explicit_sharding(x: Array) -> NamedSharding | None:
    """How an array lies on a mesh with Explicit axes; None if there is none."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.explicit_axes else None
