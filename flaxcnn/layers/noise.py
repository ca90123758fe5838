"""Noise layers: active in training, the identity in evaluation.

The noise of an example depends on the "dropout" key and on the example's position in the global
batch, on nothing else: one device, a batch sharded over eight, and `pmap` draw the same bits.
All noise is drawn in float32. Noisy integers are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from flaxcnn.errors import UserError
from flaxcnn.layers.dtypes import mean_dtype, promote

Array = jax.Array


class Dropout(nn.Module):
    """Zeroes each value with probability `rate`, scales the rest by 1 / (1 - rate).

    Srivastava et al. 2014, in the inverted form. Under `pmap`, `axis_name` is the mapped axis. The
    other attributes are those of `flax.linen.Dropout`: values along `broadcast_dims` are zeroed
    together, and keys come from the stream `rng_collection`. What differs from Flax: the bits (an
    example's do not depend on the batch around it), the order of the attributes, and a rate of 1,
    which is refused. Raises UserError unless 0 <= rate < 1.
    """

    rate: float
    axis_name: str | None = None
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Array,
        deterministic: bool | None = None,
        rng: Array | None = None,
        *,
        train: bool | None = None,
    ) -> Array:
        """Maps [N, ...] to the same shape and dtype; noisy if `train`.

        Flax's `deterministic`, here or as an attribute, is `not train`; `rng` is a key to use
        instead of one from `rng_collection`. Raises UserError unless exactly one of the three says
        whether it is training.
        """
        _check_rate(self)
        given = (self.deterministic, deterministic, None if train is None else not train)
        chosen = [value for value in given if value is not None]
        if len(chosen) != 1:
            raise UserError(
                "Dropout: exactly one of train=, deterministic= and the attribute `deterministic` "
                f"must be given, not {len(chosen)}"
            )
        if chosen[0] or self.rate == 0:
            return x
        shared = {axis % x.ndim for axis in self.broadcast_dims}
        shape = tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return _zero(self, key, x, shape, all_alike=0 in shared)


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
        return _zero(self, self.make_rng("dropout"), x, (x.shape[0], *(1 for _ in x.shape[1:])))


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
        noise = _draw(self, self.make_rng("dropout"), x, x.shape, jax.random.normal)
        wide = promote(x.dtype, noise.dtype)
        y = x.astype(wide) * (1 + std * noise).astype(wide)
        return y.astype(mean_dtype(x))


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
        noise = _draw(self, self.make_rng("dropout"), x, x.shape, jax.random.normal)
        wide = promote(x.dtype, noise.dtype)
        return (x.astype(wide) + (self.std * noise).astype(wide)).astype(mean_dtype(x))


Layer = Dropout | DropPath | GaussianDropout | GaussianNoise


def _check_rate(layer: Dropout | DropPath | GaussianDropout) -> None:
    if not 0 <= layer.rate < 1:
        raise UserError(f"{type(layer).__name__}.rate is {layer.rate}, and must be in [0, 1)")


def _zero(
    layer: Dropout | DropPath, key: Array, x: Array, shape: tuple[int, ...], all_alike: bool = False
) -> Array:
    """Zeroes values that share a place in `shape` together, and scales the rest (see `_draw`)."""
    keep = 1 - layer.rate

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.bernoulli(key, keep, shape)

    kept = _draw(layer, key, x, shape, draw, all_alike)
    return jnp.where(kept, x.astype(mean_dtype(x)) / keep, 0)


def _draw(
    layer: Layer,
    key: Array,
    x: Array,
    shape: tuple[int, ...],
    draw: Callable[[Array, tuple[int, ...]], Array],
    all_alike: bool = False,
) -> Array:
    """Draws `shape` = [N, ...] with one key per example, folded from its global position.

    Where x is sharded over explicit axes, the noise is drawn sharded as x is. `all_alike` means
    that N is 1 for all examples together.
    """
    count, *example = shape
    positions = jnp.arange(count)
    if layer.axis_name and not all_alike and not layer.is_initializing():
        positions += lax.axis_index(layer.axis_name) * count

    def draw_examples(key: Array, positions: Array) -> Array:
        return jax.vmap(lambda at: draw(jax.random.fold_in(key, at), tuple(example)))(positions)

    axes = zip(jax.typeof(x).sharding.spec, x.shape, shape, strict=True)
    spec = PartitionSpec(*(name if size == drawn else None for name, size, drawn in axes))
    if any(spec):
        divided: Any = jax.sharding.auto_axes(draw_examples, out_sharding=spec)
        return divided(key, positions)
    return draw_examples(key, positions)
