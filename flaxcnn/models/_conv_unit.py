"""The unit that Inception networks are made of: convolution, BatchNorm, ReLU."""

from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers.padding import Padding, Sizes

Array = jax.Array


class ConvUnit(nn.Module):
    """A convolution, BatchNorm unless `norm` is None, and ReLU.

    `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train mode chosen. There
    are `features` * `width` channels, but at least 16 where `features` is (TF-slim's multiplier).
    """

    features: int
    kernel_size: Sizes
    strides: Sizes = 1
    padding: Padding = 0
    conv: Any = None
    norm: Any = None
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        features = max(int(self.features * self.width), min(self.features, 16))
        x = self.conv(features, self.kernel_size, self.strides, padding=self.padding, name="conv")(
            x
        )
        return nn.relu(x if self.norm is None else self.norm(name="bn")(x))
