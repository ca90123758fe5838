"""The residual blocks of ResNet, ResNeXt, SE-ResNet and SENet, and of the plain networks.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016 (arXiv:1512.03385),
Figure 5 and section 3.3.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import SqueezeExcite
from flaxcnn.models._stride import take_every

Array = jax.Array
Shortcut = Literal["none", "pad", "project", "project_all"]

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, eq. 14
dense_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `features` channels come out.

    `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train mode chosen; `drop`
    is applied to the branch before the sum. `se_reduction` is that of squeeze-and-excitation on
    the branch, 0 for none. `dilation` is that of the two convolutions.
    """

    features: int
    stride: int
    shortcut: Shortcut
    conv: Any
    norm: Any
    drop: Any
    se_reduction: int = 0
    dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features]."""
        first, second = self.dilation
        conv1 = self.conv(
            self.features, 3, self.stride, padding=first, dilation=first, name="conv1"
        )
        y = nn.relu(self.norm(name="bn1")(conv1(x)))
        y = self.conv(self.features, 3, padding=second, dilation=second, name="conv2")(y)
        return _join(self, x, self.norm(name="bn2")(y))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up and a shortcut; `features` channels come out. See BasicBlock.

    `width` is the channels of the 3x3 convolution, in `groups`, and `reduced` those of the first
    1x1, by default as many. With `stride_first` the stride is on the first 1x1, as in the paper,
    not on the 3x3, which then has the second dilation, else the first. `shortcut_size` is that of
    the shortcut's convolution where the map shrinks.
    """

    features: int
    width: int
    stride: int
    shortcut: Shortcut
    conv: Any
    norm: Any
    drop: Any
    groups: int = 1
    stride_first: bool = False
    se_reduction: int = 0
    reduced: int | None = None
    shortcut_size: int = 1
    dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features]."""
        first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
        reduced = self.reduced or self.width
        y = nn.relu(self.norm(name="bn1")(self.conv(reduced, 1, first, name="conv1")(x)))
        dilation = self.dilation[self.stride_first]
        conv2 = self.conv(
            self.width,
            3,
            second,
            padding=dilation,
            dilation=dilation,
            groups=self.groups,
            name="conv2",
        )
        y = nn.relu(self.norm(name="bn2")(conv2(y)))
        conv3 = self.conv(self.features, 1, name="conv3")
        z = conv3(y)
        kernel = conv3.get_variable("params", "kernel")[0, 0]
        y = self.norm(name="bn3")(z, product=(y.astype(z.dtype), kernel.astype(z.dtype)))
        return _join(self, x, y, self.shortcut_size if self.stride > 1 else 1)


def _join(block: BasicBlock | Bottleneck, x: Array, y: Array, size: int = 1) -> Array:
    """Adds what the shortcut makes of `x` (the paper's options A, B, C) to the branch `y`."""
    if block.se_reduction:
        y = SqueezeExcite(block.se_reduction, y.dtype, name="se")(y)
    y = block.drop(y)
    if block.shortcut == "none":
        return nn.relu(y)
    if block.shortcut == "project_all" or (block.shortcut == "project" and x.shape != y.shape):
        conv = block.conv(
            block.features, size, block.stride, padding=size // 2, name="shortcut_conv"
        )
        x = block.norm(name="shortcut_bn")(conv(x))
    elif x.shape != y.shape:  # no parameters: every other pixel, zeros in the new channels
        missing = y.shape[-1] - x.shape[-1]
        x = take_every(x, block.stride)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
    return nn.relu(x + y)


def drop_rate(last: float, depths: tuple[int, ...], stage: int, block: int) -> float:
    """The probability to drop a block's branch, in proportion to its depth; `last` at the end."""
    return last * (sum(depths[:stage]) + block) / max(sum(depths) - 1, 1)
