"""Normalisation: over the batch, and over adjacent channels."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.channels import spread_per_channel, sum_per_channel

Array = jax.Array


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), the values of `flax.linen.BatchNorm`.

    Normalises each channel of [N, *size, C] by the mean and variance over the batch, or by their
    running averages, then multiplies by `scale` and adds `bias`, both float32 [C]. `momentum` is
    the share of the running averages that is kept (1 - momentum in PyTorch); like Flax's, the
    running variance averages the biased variance of each batch, where PyTorch takes the unbiased
    one, n / (n - 1) times as large for n values per channel. Inside `pmap` or `shard_map`, the
    batch is that of all devices along `axis_name`. Statistics are computed in float32 and the
    result is of `dtype`.
    """

    use_running_average: bool
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros_init()
    scale_init: Initializer = nn.initializers.ones_init()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, *size, C] to the same shape; updates `batch_stats` where they are mutable."""
        channels = (x.shape[-1],)
        old_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        old_variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        mean, variance = old_mean.value, old_variance.value
        if not self.use_running_average:
            mean, variance = self._batch_statistics(x)
            if not self.is_initializing():
                kept = self.momentum
                old_mean.value = kept * old_mean.value + (1 - kept) * mean
                old_variance.value = kept * old_variance.value + (1 - kept) * variance
        factor = lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, channels, jnp.float32)
        y = x - spread_per_channel(mean, x)
        y = y * spread_per_channel(factor, x)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, channels, jnp.float32)
            y = y + spread_per_channel(bias, x)
        return jnp.asarray(y, self.dtype)

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        wide = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
        count = x.size // x.shape[-1]
        moments = jnp.stack([sum_per_channel(wide), sum_per_channel(wide * wide)]) / count
        if self.axis_name is not None and not self.is_initializing():
            moments = lax.pmean(moments, self.axis_name)
        mean, mean_of_squares = moments
        return mean, jnp.maximum(mean_of_squares - mean * mean, 0)


def local_response_norm(
    x: Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    divide_alpha: bool = False,
) -> Array:
    """Divides each channel by (k + alpha * sum of squares of `size` adjacent channels) ** beta.

    Takes [..., C] with the defaults of its paper (Krizhevsky et al. 2012, section 3.3). Caffe and
    PyTorch divide alpha by `size` (`divide_alpha=True`) and start from k=1. The window is centred
    and cut off at the first and last channel; an even one reaches further down, as in PyTorch. Half
    precision is computed in float32. Raises UserError unless `size` >= 1.
    """
    if size < 1:
        raise UserError(f"local_response_norm: size is {size}, and must be at least 1")
    if divide_alpha:
        alpha /= size
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = k + alpha * _sum_of_adjacent(wide * wide, size)
    return (wide * _negative_power(scale, beta)).astype(x.dtype)


def _sum_of_adjacent(x: Array, size: int) -> Array:
    """Sums windows of channels as a product with a band of ones.

    With roots for powers (below), 3 times as fast on CPU as five shifted sums and `**`, and 8 times
    in the gradient (96 channels of 55x55).
    """
    channel = np.arange(x.shape[-1])
    offset = channel[:, None] - channel
    band = (-(size // 2) <= offset) & (offset <= (size - 1) // 2)
    return jnp.dot(x, jnp.asarray(band, x.dtype), precision=lax.Precision.HIGHEST)


def _negative_power(x: Array, beta: float) -> Array:
    if beta == 0.75:  # everyone's choice, and twice as fast by roots on CPU
        root = lax.rsqrt(x)
        return root * jnp.sqrt(root)
    return x**-beta
