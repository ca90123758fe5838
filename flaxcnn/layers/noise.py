"""Noise layers: active in training, the identity in evaluation.

The noise of an example depends on the "dropout" key and on the example's position in the global
batch, on nothing else: one device, a batch sharded over eight, and `pmap` draw the same bits.
All noise is drawn in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxcnn.errors import UserError

Array = jax.Array


class Dropout(nn.Module):
    """Zeroes each value with probability `rate`, scales the rest by 1 / (1 - rate).

    Srivastava et al. 2014, in the inverted form. Under `pmap`, `axis_name` is the mapped axis.
    Raises UserError unless 0 <= rate < 1.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, ...] to the same shape and dtype; noisy if `train`."""
        _check_rate(self)
        if not train or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = _draw(self, x.shape, lambda key, shape: jax.random.bernoulli(key, keep, shape))
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


class DropPath(nn.Module):
    """Zeroes whole examples with probability `rate`, scales the rest by 1 / (1 - rate).

    On the branch of a residual block this is stochastic depth (Huang et al. 2016, arXiv:1603.09382,
    scaled in training as in dropout rather than in evaluation). Under `pmap`, `axis_name` is the
    mapped axis. Raises UserError unless 0 <= rate < 1.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, ...] to the same shape and dtype; noisy if `train`."""
        _check_rate(self)
        if not train or self.rate == 0:
            return x
        keep, shape = 1 - self.rate, (x.shape[0], *(1 for _ in x.shape[1:]))
        kept = _draw(self, shape, lambda key, shape: jax.random.bernoulli(key, keep, shape))
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


class GaussianDropout(nn.Module):
    """Multiplies each value by noise of mean 1 and standard deviation sqrt(rate / (1 - rate)).

    Srivastava et al. 2014, section 10: the variance of dropout at the same rate. Under `pmap`,
    `axis_name` is the mapped axis. Raises UserError unless 0 <= rate < 1.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, ...] to the same shape and dtype; noisy if `train`."""
        _check_rate(self)
        if not train or self.rate == 0:
            return x
        std = (self.rate / (1 - self.rate)) ** 0.5
        return (x * (1 + std * _draw(self, x.shape, jax.random.normal))).astype(x.dtype)


class GaussianNoise(nn.Module):
    """Adds noise of mean 0 and standard deviation `std`, in the units of its input.

    Under `pmap`, `axis_name` is the mapped axis. Raises UserError if `std` is negative.
    """

    std: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, ...] to the same shape and dtype; noisy if `train`."""
        if self.std < 0:
            raise UserError(f"GaussianNoise.std is {self.std}, and must not be negative")
        if not train or self.std == 0:
            return x
        return (x + self.std * _draw(self, x.shape, jax.random.normal)).astype(x.dtype)


def _check_rate(layer: Dropout | DropPath | GaussianDropout) -> None:
    if not 0 <= layer.rate < 1:
        raise UserError(f"{type(layer).__name__}.rate is {layer.rate}, and must be in [0, 1)")


def _draw(
    layer: Dropout | DropPath | GaussianDropout | GaussianNoise,
    shape: tuple[int, ...],
    draw: Callable[[Array, tuple[int, ...]], Array],
) -> Array:
    """Draws `shape` = [N, ...] with one key per example, folded from its global position."""
    key, (count, *example) = layer.make_rng("dropout"), shape
    positions = jnp.arange(count)
    if layer.axis_name and not layer.is_initializing():
        positions += lax.axis_index(layer.axis_name) * count

    def draw_example(position: Array) -> Array:
        return draw(jax.random.fold_in(key, position), tuple(example))

    return jax.vmap(draw_example)(positions)
