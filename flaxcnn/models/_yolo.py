"""What the YOLO detectors share: the unit of Darknet, and the small networks below tiny forms."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, make_norm, run_block, run_stages
from flaxcnn.models.darknet import he_normal

Array = jax.Array
Unit = Callable[..., Array]


def make_unit(network: Any, train: bool, batch_norm: bool = True) -> Unit:
    """`unit(x, features, size, name, stride=1)`: convolution, BatchNorm, leaky ReLU of slope 0.1.

    The parameters are `NAME_conv` and `NAME_bn`; without BatchNorm the convolution has a bias.
    `network.momentum` is BatchNorm's.
    """
    conv = functools.partial(
        Conv, use_bias=not batch_norm, dtype=network.dtype, kernel_init=he_normal
    )
    norm = make_norm(network, train, momentum=network.momentum)

    def unit(x: Array, features: int, size: int, name: str, stride: int = 1) -> Array:
        x = conv(features, size, stride, padding=size // 2, name=f"{name}_conv")(x)
        if batch_norm:
            x = norm(name=f"{name}_bn")(x)
        return nn.leaky_relu(x, 0.1)

    return unit


class TinyDarknet(Network):
    """The network below the tiny detectors, without a classifier: [N, H, W, C] -> maps.

    3x3 convolutions, a pooling before each but the first, the last of stride 1. The stages are
    theirs.

    Attributes:
      features: of the convolutions.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    features: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, ...]:
        """Maps images [N, H, W, C] to a tuple of maps."""
        check_images(images, 1, self)
        unit = make_unit(self, train)

        def stage(x: Array, index: int) -> Array:
            if 0 < index < len(self.features) - 1:
                x = max_pool(x, (2, 2), (2, 2), ceil_mode=True)
            elif index:  # one row and column beyond the map, below and on the right
                x = max_pool(x, (2, 2), (1, 1), ((0, 1), (0, 1)))
            return unit(x, self.features[index], 3, f"stage{index + 1}")

        stages = {
            f"stage{i + 1}": functools.partial(run_block, self, stage, index=i)
            for i in range(len(self.features))
        }
        return run_stages(self, images, stages)
