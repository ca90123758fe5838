"""A fixed number of anchors or proposals, drawn by key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class Sample(NamedTuple):
    """What was drawn, positives first."""

    indices: Array  # int32 [count]; 0 where not valid
    positive: Array  # bool [count]
    valid: Array  # bool [count]


def sample_balanced(
    key: Array, positive: Array, negative: Array, count: int, positive_share: float
) -> Sample:
    """Draws `count` of P candidates without replacement, of one image, to be vmapped.

    Positives (bool [P]) are `positive_share` of them at most, and negatives (bool [P]) the rest; if
    there are too few of those, fewer than `count` are valid. As torchvision's
    `BalancedPositiveNegativeSampler` (Girshick 2015, section 2.3).
    """
    total = len(positive)
    count_positive = min(int(count * positive_share), total)
    chance = jax.random.uniform(key, (total,))  # candidates are of one kind: one draw is enough

    def draw(of: Array, most: int) -> tuple[Array, Array]:
        found, index = lax.top_k(jnp.where(of, chance, -1), most)
        return found >= 0, index

    is_positive, positives = draw(positive, count_positive)
    is_negative, negatives = draw(negative, min(count, total))
    left = count - is_positive.sum(dtype=jnp.int32)
    is_negative &= lax.iota(jnp.int32, len(negatives)) < left
    valid = jnp.concatenate([is_positive, is_negative])
    indices = jnp.concatenate([positives, negatives])
    rest = max(count - len(indices), 0)
    valid, indices = jnp.pad(valid, (0, rest)), jnp.pad(indices, (0, rest))
    order = jnp.argsort(~valid, stable=True)[:count]
    chosen = valid[order]
    drawn_positive = chosen & (order < count_positive)
    return Sample(jnp.where(chosen, indices[order], 0), drawn_positive, chosen)
