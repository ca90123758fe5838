"""What losses read of padded targets: `Boxes` with a leading axis N."""

import jax
import jax.numpy as jnp

from flaxcnn.boxes import covered_share
from flaxcnn.data.targets import Boxes

Array = jax.Array


def find_objects(targets: Boxes) -> Array:
    """Which boxes are to be predicted, bool [N, M]: those that count and are around one object."""
    valid = jnp.asarray(targets.valid)
    return valid if targets.crowd is None else valid & ~jnp.asarray(targets.crowd)


def find_crowded(boxes: Array, targets: Boxes, share: float = 0.5) -> Array:
    """Which of boxes [N, P, 4] lie in a crowd, by more than `share` of their area: bool [N, P].

    They are no background: pycocotools, too, counts no detection there as wrong.
    """
    if targets.crowd is None:
        return jnp.zeros(boxes.shape[:2], bool)
    crowds = jnp.asarray(targets.valid) & jnp.asarray(targets.crowd)
    inside = covered_share(boxes, jnp.asarray(targets.boxes)) > share
    return (inside & crowds[:, None]).any(-1)


def take_matched(values: Array, matches: Array) -> Array:
    """The row of values [N, M, ...] that each of `matches` [N, P] names; the first, if none."""
    return jax.vmap(lambda row, match: row[jnp.maximum(match, 0)])(jnp.asarray(values), matches)
