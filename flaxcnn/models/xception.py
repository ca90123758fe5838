"""Xception: Inception taken to its end, one spatial filter per channel.

Chollet: Xception: deep learning with depthwise separable convolutions, CVPR 2017
(arXiv:1610.02357), Figure 5. Trained by SGD with momentum 0.9 and weight decay 1e-5.
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath, SeparableConv, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array

glorot_uniform = nn.initializers.glorot_uniform()  # the paper names none: Keras' default


class XceptionBlock(nn.Module):
    """ReLU, separable 3x3, BatchNorm for each of `features`, and a linear shortcut.

    `conv`, `separable` and `norm` are Conv, SeparableConv and BatchNorm with dtype, initialiser
    and train mode chosen; `drop` is applied to the branch before the sum. With stride 2 a 3x3
    maximum ends the branch, and the shortcut is a 1x1 convolution with BatchNorm.
    `starts_with_relu` is false for the first block, whose input has gone through one.
    """

    features: tuple[int, ...]
    stride: int
    conv: Any
    separable: Any
    norm: Any
    drop: Any
    starts_with_relu: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features[-1]], rounded up."""
        y = x
        for i, features in enumerate(self.features, 1):
            y = nn.relu(y) if i > 1 or self.starts_with_relu else y
            y = self.separable(features, 3, name=f"sepconv{i}")(y)
            y = self.norm(name=f"bn{i}")(y)
        if self.stride > 1:
            y = max_pool(y, (3, 3), (self.stride, self.stride), "SAME")
            x = self.conv(self.features[-1], 1, self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return x + self.drop(y)


# Figure 5: channels of the separable convolutions.
ENTRY = ((128, 128), (256, 256), (728, 728))
MIDDLE = (728, 728, 728)
EXIT = ((728, 1024), (1536, 2048))


class Xception(Network):
    """Xception: [N, H, W, C] -> float32 logits [N, num_classes].

    Maps shrink as with TensorFlow's "SAME" padding: to half, rounded up. The output of a stage is
    that of its last sum, but for the stem's and the exit's, which have gone through ReLU.

    Attributes:
      width: multiplier of all channels.
      middle_blocks: blocks of the middle flow, three separable convolutions each.
      dropout: before the classifier.
      drop_path: probability to drop the last block's branch; those before it in proportion.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    width: float = 1.0
    middle_blocks: int = 8
    dropout: float = 0.5
    drop_path: float = 0.0
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 7, self)
        chosen = {"use_bias": False, "dtype": self.dtype, "kernel_init": glorot_uniform}
        conv = functools.partial(Conv, **chosen)
        separable = functools.partial(SeparableConv, **chosen)
        norm = make_norm(self, train, momentum=self.momentum, epsilon=1e-3)

        def scale(features: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(max(1, round(f * self.width)) for f in features)

        def stem(x: Array) -> Array:
            for i, (features, stride) in enumerate(zip(scale((32, 64)), (2, 1), strict=True), 1):
                x = conv(features, 3, stride, padding="VALID", name=f"stem_conv{i}")(x)
                x = nn.relu(norm(name=f"stem_bn{i}")(x))
            return x

        def block(x: Array, index: int, features: tuple[int, ...], stride: int, name: str) -> Array:
            rate = self.drop_path * index / (len(ENTRY) + self.middle_blocks)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            return XceptionBlock(
                scale(features),
                stride,
                conv,
                separable,
                norm,
                functools.partial(drop, train=train),
                starts_with_relu=index > 0,
                name=name,
            )(x)

        def entry(x: Array, index: int) -> Array:
            name = f"entry_block{index + 1}"
            return run_block(
                self, block, x, index=index, features=ENTRY[index], stride=2, name=name
            )

        def middle(x: Array) -> Array:
            x = entry(x, 2)
            for i in range(self.middle_blocks):
                index, name = len(ENTRY) + i, f"middle_block{i + 1}"
                x = run_block(self, block, x, index=index, features=MIDDLE, stride=1, name=name)
            return x

        def last(x: Array) -> Array:
            x = block(x, len(ENTRY) + self.middle_blocks, EXIT[0], 2, "exit_block")
            for i, features in enumerate(scale(EXIT[1]), 1):
                x = separable(features, 3, name=f"exit_sepconv{i}")(x)
                x = nn.relu(norm(name=f"exit_bn{i}")(x))
            return x

        stages = {
            "stem": functools.partial(run_block, self, stem),
            "entry1": functools.partial(entry, index=0),
            "entry2": functools.partial(entry, index=1),
            "middle": middle,
            "exit": functools.partial(run_block, self, last),
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(
            self, outputs[-1], train=train, kernel_init=glorot_uniform, dropout=self.dropout
        )


VARIANTS = {
    "xception": make_variant(
        Xception,
        22_855_952,
        8_357_403_496,
        54_528,
        num_classes=1000,
        input_shape=(299, 299, 3),
        paper="Chollet, Xception: deep learning with depthwise separable convolutions",
        year=2016,
    )
}

DEVIATIONS = (
    Deviation(
        "xception",
        "Dropout 0.5 before the classifier.",
        "Keras' network, by the paper's author, has no dropout.",
        "The paper's; in evaluation there is no difference.",
    ),
    Deviation(
        "xception",
        "Padding is not given.",
        "Keras pads as TensorFlow's \"SAME\", below and to the right where a side is even; timm's "
        "`legacy_xception` pads symmetrically, with epsilon 1e-5 for 1e-3, and `xception41/65/71` "
        "are DeepLab's networks.",
        "Keras', from which the public weights come.",
    ),
)
