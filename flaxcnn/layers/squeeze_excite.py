"""Squeeze-and-excitation: channels weighted by what the whole map holds."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flaxcnn.layers.conv_modules import Conv

Array = jax.Array


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate in 0..1 (Hu et al. 2018, arXiv:1709.01507, section 3).

    The gates are the sigmoid of two 1x1 convolutions with biases, `reduce` (to C // reduction
    channels, then ReLU) and `expand`, of the averages over the map.
    """

    reduction: int = 16
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the same shape, of `dtype`."""
        channels = x.shape[-1]
        gate = x.mean((1, 2), keepdims=True)
        conv = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        gate = nn.relu(Conv(channels // self.reduction, 1, **conv, name="reduce")(gate))
        return jnp.asarray(x, self.dtype) * nn.sigmoid(
            Conv(channels, 1, **conv, name="expand")(gate)
        )
