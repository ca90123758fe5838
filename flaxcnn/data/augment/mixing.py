"""Mixing of examples: each with its neighbour in the batch, which the epoch's order made random."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from flaxcnn.data.augment.settings import check_number
from flaxcnn.data.rounding import lerp, product

Array = jax.Array


class Mixed(struct.PyTreeNode):
    """Targets of mixed examples: `first` counts `share` (0..1, [N]), `second` the rest.

    Every loss of `flaxcnn.tasks.losses` is linear in its target, or up to a constant (mse): the
    weighted sum of the losses for the two targets has the gradient of the loss for their average.
    """

    first: Any
    second: Any
    share: Array


def for_targets(function: Callable[[Any], Any], targets: Any) -> Any:
    """`function` of the targets; its arrays [N, ...] are averaged by their shares if mixed."""
    if not isinstance(targets, Mixed):
        return function(targets)

    def average(share: Array, first: Any, second: Any) -> Any:
        return jax.tree.map(lambda a, b: share * a + (1 - share) * b, first, second)

    return jax.vmap(average)(targets.share, function(targets.first), function(targets.second))


@dataclasses.dataclass(frozen=True)
class Mix:
    """A mixing: `apply(key, image, other)` is an image and the share of the first one in it."""

    apply: Callable[[Array, Array, Array], tuple[Array, Array]]


def mixup(alpha: float = 0.2) -> Mix:
    """The average of two images, weighted by Beta(`alpha`, `alpha`) (Zhang 2018)."""
    check_number("alpha", alpha, 0.01, 100)

    def apply(key: Array, image: Array, other: Array) -> tuple[Array, Array]:
        share = _beta(key, alpha)
        return lerp(other, image, share), share

    return Mix(apply)


def cutmix(alpha: float = 1.0) -> Mix:
    """A rectangle of the other image, its area's share Beta(`alpha`, `alpha`) (Yun 2019).

    Centred anywhere and cut at the borders; the labels' share is that of the pixels left.
    """
    check_number("alpha", alpha, 0.01, 100)

    def apply(key: Array, image: Array, other: Array) -> tuple[Array, Array]:
        height, width, _ = image.shape
        area, at = jax.random.split(key)
        side = jnp.sqrt(1 - _beta(area, alpha))
        y, x = jax.random.uniform(at, (2,))
        rows = _inside(product(y, height), product(side, height / 2), height)
        columns = _inside(product(x, width), product(side, width / 2), width)
        inside = rows[:, None] & columns[None, :]
        share = 1 - inside.sum() / (height * width)
        return jnp.where(inside[..., None], other, image), share

    return Mix(apply)


def mixup_or_cutmix(mixup_alpha: float = 0.1, cutmix_alpha: float = 1.0) -> Mix:
    """`mixup` of every other pair on average, `cutmix` of the rest (Wightman 2021: by batch)."""
    check_number("mixup_alpha", mixup_alpha, 0.01, 100)
    check_number("cutmix_alpha", cutmix_alpha, 0.01, 100)
    mixes = mixup(mixup_alpha), cutmix(cutmix_alpha)

    def apply(key: Array, image: Array, other: Array) -> tuple[Array, Array]:
        choice, key = jax.random.split(key)
        first, second = (mix.apply(key, image, other) for mix in mixes)
        chosen = jax.random.bernoulli(choice)
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), first, second)

    return Mix(apply)


def _inside(centre: Array, half: Array, size: int) -> Array:
    pixels = jnp.arange(size)
    return (pixels >= jnp.round(centre - half)) & (pixels < jnp.round(centre + half))


def _beta(key: Array, alpha: float) -> Array:
    return jax.random.beta(key, alpha, alpha)


def mix_batch(
    mix: Mix, keys: Array, images: Array, targets: Any, axis_name: str | None = None
) -> tuple[Array, Mixed]:
    """Mixes each example of [N, H, W, C] with the next, the last with the first.

    `keys` is one per example. Under `pmap` over `axis_name` N is a device's part, and its last
    example is mixed with the first of the next device's.
    """
    following = functools.partial(take_following, axis_name=axis_name)
    mixed, shares = jax.vmap(mix.apply)(keys, images, following(images))
    return mixed, Mixed(targets, jax.tree.map(following, targets), shares)


def take_following(x: Array, axis_name: str | None = None) -> Array:
    """Of each example of [N, ...] the next one's, of the last the first's; under `pmap` too."""
    first = x[:1]
    if axis_name is not None:
        count = jax.lax.axis_size(axis_name)
        pairs = [((i + 1) % count, i) for i in range(count)]
        first = jax.lax.ppermute(first, axis_name, pairs)
    return jnp.concatenate([x[1:], first])
