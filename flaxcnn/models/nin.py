"""Network in network: 1x1 convolutions after each larger one, and averaged maps for a classifier.

Lin, Chen, Yan: Network in network, ICLR 2014 (arXiv:1312.4400), section 4.1. The paper does not
list its layers; these are of the authors' Caffe files, as are the initial weights. Trained by SGD
with momentum 0.9.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, avg_pool, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, average, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array


class MLPConv(NamedTuple):
    """A convolution and the 1x1 convolutions after it, each with a ReLU (section 3.1)."""

    features: tuple[int, ...]
    kernel_size: int
    stride: int = 1
    padding: int = 0
    pool: Callable[..., Array] | None = None  # 3x3 with stride 2, before the convolution
    dropout: bool = False  # after that pooling
    std: float = 0.05  # of the first initial kernel; 0.05 in the others


class NiN(Network):
    """Network in network: [N, H, W, C] -> float32 logits [N, num_classes].

    The classifier is a last 1x1 convolution with a ReLU, whose maps are averaged.

    Attributes:
      blocks: see MLPConv.
      dropout: the rate after poolings.
      classifier_std: of the classifier's initial kernel.
    """

    blocks: tuple[MLPConv, ...]
    dropout: float = 0.5
    classifier_std: float = 0.05

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, _smallest_side(self.blocks), self)

        def stage(x: Array, index: int) -> Array:
            block, name = self.blocks[index - 1], f"stage{index}"
            if block.pool:
                x = block.pool(x, (3, 3), (2, 2), ceil_mode=True)
            if block.dropout:
                drop = Dropout(self.dropout, self.axis_name, name=f"{name}_dropout")
                x = drop(x, train=train)
            for i, features in enumerate(block.features, 1):
                first = i == 1
                conv = Conv(
                    features,
                    block.kernel_size if first else 1,
                    block.stride if first else 1,
                    padding=block.padding if first else 0,
                    dtype=self.dtype,
                    kernel_init=nn.initializers.normal(block.std if first else 0.05),
                    name=f"{name}_conv{i}",
                )
                x = nn.relu(conv(x))
            return x

        stages: dict[str, Any] = {
            f"stage{i}": functools.partial(run_block, self, stage, index=i)
            for i in range(1, len(self.blocks) + 1)
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = outputs[-1]
        if self.num_classes:
            init = nn.initializers.normal(self.classifier_std)
            x = nn.relu(Conv(self.num_classes, 1, kernel_init=init, name="classifier")(x))
        return average(self, x.astype(jnp.float32))


def _smallest_side(blocks: tuple[MLPConv, ...]) -> int:
    side = 1
    for block in reversed(blocks):
        side = max((side - 1) * block.stride + block.kernel_size - 2 * block.padding, 1)
        if block.pool:
            side *= 2
    return side


VARIANTS = {
    "nin_imagenet": make_variant(
        NiN,
        7_595_176,
        1_100_188_800,
        num_classes=1000,
        blocks=(
            MLPConv((96, 96, 96), 11, stride=4, std=0.01),
            MLPConv((256, 256, 256), 5, padding=2, pool=max_pool),
            MLPConv((384, 384, 384), 3, padding=1, pool=max_pool, std=0.01),
            MLPConv((1024, 1024), 3, padding=1, pool=max_pool, dropout=True),
        ),
        classifier_std=0.01,
        input_shape=(224, 224, 3),
        paper="Lin et al., Network in network",
        year=2013,
    ),
    "nin_cifar10": make_variant(
        NiN,
        966_986,
        222_486_528,
        num_classes=10,
        blocks=(
            MLPConv((192, 160, 96), 5, padding=2),
            MLPConv((192, 192, 192), 5, padding=2, pool=max_pool, dropout=True),
            MLPConv((192, 192), 3, padding=1, pool=avg_pool, dropout=True),
        ),
        input_shape=(32, 32, 3),
        paper="Lin et al., Network in network, section 4.2",
        year=2013,
    ),
}

DEVIATIONS = (
    Deviation(
        "nin_*",
        "The widths of layers are not listed, nor is the network for ImageNet.",
        "The authors' Caffe files list them; a ReLU follows the last convolution too, so that "
        "logits are not negative, and pooling keeps cut windows.",
        "As in the Caffe files.",
    ),
)
