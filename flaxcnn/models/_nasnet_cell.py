"""The cells of NASNet-A, normal and reducing, and its auxiliary classifier.

Zoph, Vasudevan, Shlens, Le: Learning transferable architectures for scalable image recognition,
CVPR 2018 (arXiv:1707.07012), Figure 4; the classifier is that of the authors' code (TF-slim).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxcnn.layers import avg_pool, max_pool
from flaxcnn.models._images import flatten

Array = jax.Array
Border = Literal["none", "zeros", "zeros_in_averages"]
Previous = Literal["same", "project", "reduce"]

# TF-slim's: by what leaves a channel, and in a depthwise convolution that is its own filter.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
depthwise_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class SeparablePair(nn.Module):
    """ReLU, depthwise, 1x1, BatchNorm, twice; the stride is on the first depthwise convolution.

    `conv`, `depthwise` and `norm` are Conv, DepthwiseConv and BatchNorm with dtype, initialiser
    and train mode chosen.
    """

    features: int
    kernel_size: int
    stride: int
    conv: Any
    depthwise: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features], rounded up."""
        for i, stride in ((1, self.stride), (2, 1)):
            x = self.depthwise(self.kernel_size, strides=stride, name=f"depthwise{i}")(nn.relu(x))
            x = self.norm(name=f"bn{i}")(self.conv(self.features, 1, name=f"pointwise{i}")(x))
        return x


class Cell(nn.Module):
    """A cell of Figure 4, normal or reducing: sums of two operations each, joined.

    The cell sees the outputs of the two before it. Both are brought to `features` channels; how the
    older one, `previous` says: it is the "same" map as the other (in the first cell), or is
    projected if its channels differ, or has twice the sides and is reduced. A reducing cell halves
    maps, and gives 4 * features channels, the normal one 6 * features. `pair` is SeparablePair with
    convolutions chosen; `drop` makes the DropPath at the end of each operation. `border` is that of
    the network.
    """

    features: int
    reduces: bool
    previous: Previous
    border: Border
    conv: Any
    norm: Any
    pair: Any
    drop: Any

    @nn.compact
    def __call__(self, x: Array, previous: Array) -> Array:
        """Maps [N, H, W, C] and what came before it to [N, H', W', 4 or 6 * features]."""
        p = self._adjust(previous)
        h = self.norm(name="current_bn")(
            self.conv(self.features, 1, name="current_conv")(nn.relu(x))
        )
        return self._reduce(h, p) if self.reduces else self._transform(h, p)

    def _adjust(self, p: Array) -> Array:
        fits = self.previous == "project" and p.shape[-1] == self.features  # with one cell a stage
        if self.previous == "same" or fits:
            return p
        p = nn.relu(p)
        if self.previous == "project":
            p = self.conv(self.features, 1, name="previous_conv")(p)
        else:  # half of the channels see every other pixel, half those down and right of them
            shifted = jnp.pad(p, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
            p = jnp.concatenate(
                [
                    self.conv(self.features // 2, 1, 2, name="previous_conv1")(p),
                    self.conv(self.features // 2, 1, 2, name="previous_conv2")(shifted),
                ],
                axis=-1,
            )
        return self.norm(name="previous_bn")(p)

    def _separable(self, x: Array, kernel_size: int, name: str, stride: int = 1) -> Array:
        x = self.pair(self.features, kernel_size, stride, name=name)(x)
        return self._drop(x, name)

    def _drop(self, x: Array, name: str) -> Array:
        return self.drop(name=f"{name}_drop")(x)

    def _transform(self, h: Array, p: Array) -> Array:
        averages = [_average(x) for x in (h, p)]
        return jnp.concatenate(
            [
                p,
                self._separable(h, 5, "block1_left") + self._separable(p, 3, "block1_right"),
                self._separable(p, 5, "block2_left") + self._separable(p, 3, "block2_right"),
                self._drop(averages[0], "block3_left") + p,
                self._drop(averages[1], "block4_left") + self._drop(averages[1], "block4_right"),
                self._separable(h, 3, "block5_left") + h,
            ],
            axis=-1,
        )

    def _reduce(self, h: Array, p: Array) -> Array:
        maximum, average = _pool_by_two(h, self.border)
        block1 = self._separable(h, 5, "block1_left", 2) + self._separable(p, 7, "block1_right", 2)
        block2 = self._drop(maximum, "block2_left") + self._separable(p, 7, "block2_right", 2)
        block3 = self._drop(average, "block3_left") + self._separable(p, 5, "block3_right", 2)
        block4 = self._drop(_average(block1), "block4_left") + block2
        block5 = self._separable(block1, 3, "block5_left") + self._drop(maximum, "block5_right")
        return jnp.concatenate([block2, block3, block4, block5], axis=-1)


def _average(x: Array) -> Array:
    return avg_pool(x, (3, 3), padding=1, count_include_pad=False)


def _pool_by_two(x: Array, border: Border) -> tuple[Array, Array]:
    """Maximum and mean over 3x3 windows, every other; the border as NASNet's `border` says."""
    average = avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=border != "none")
    if border != "zeros":
        return max_pool(x, (3, 3), (2, 2), "SAME"), average
    pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME")
    return max_pool(jnp.pad(x, ((0, 0), *pads, (0, 0))), (3, 3), (2, 2)), average


class AuxiliaryHead(nn.Module):
    """Logits from a map before the last reduction; the second convolution sees all of it."""

    num_classes: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to float32 logits [N, num_classes]."""
        x = avg_pool(nn.relu(x), (5, 5), (3, 3))
        x = nn.relu(self.norm(name="bn1")(self.conv(128, 1, name="conv1")(x)))
        x = self.conv(768, x.shape[1:3], padding="VALID", name="conv2")(x)
        x = flatten(nn.relu(self.norm(name="bn2")(x)))
        return nn.Dense(self.num_classes, kernel_init=he_normal, name="classifier")(x)
