"""ResNetV2: residual networks with normalisation and activation before each convolution.

He, Zhang, Ren, Sun: Identity mappings in deep residual networks, ECCV 2016 (arXiv:1603.05027),
Figure 1b and Table 6. Keras' form, which is TF-slim's, and timm's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._residual import dense_uniform, drop_rate, he_normal
from flaxcnn.models._stride import take_every
from flaxcnn.models._variant import make_variant
from flaxcnn.models.resnet import DEPTHS

Array = jax.Array


class PreActivationBottleneck(nn.Module):
    """BatchNorm, ReLU and a convolution, three times, and a shortcut without anything after it.

    `features` channels come out; the first 1x1 and the 3x3, which has the stride, have a quarter.
    The shortcut is a 1x1 convolution of the first activation if `project`, else every `stride`-th
    pixel of the input. `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train
    mode chosen; `drop` is applied to the branch before the sum. `use_bias` is that of the shortcut
    and of the last 1x1.
    """

    features: int
    stride: int
    project: bool
    conv: Any
    norm: Any
    drop: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features]."""
        features, width = self.features, self.features // 4
        last = functools.partial(self.conv, features, 1, use_bias=self.use_bias)
        y = nn.relu(self.norm(name="bn1")(x))
        if self.project:
            x = last(strides=self.stride, name="shortcut_conv")(y)
        elif self.stride > 1:
            x = take_every(x, self.stride)
        y = self.conv(width, 1, name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(width, 3, self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn3")(y))
        return x + self.drop(last(name="conv3")(y))


class ResNetV2(Network):
    """ResNetV2: [N, H, W, C] -> float32 logits [N, num_classes].

    The output of the stem is that before its pooling, with which the first stage begins.

    Attributes:
      depths: blocks in each stage; from stage to stage maps halve and channels double.
      features: channels of the stem, a quarter of those of the first stage.
      stride_last: the strides in the last blocks of all stages but the last, not in the first
        blocks of all but the first.
      use_bias: of the stem, the shortcuts and the last convolution of each block.
      zero_border: zeros around the map that the stem pools, not minus infinity. It has not passed
        an activation, so they differ.
      dropout: probability to drop a feature before the classifier.
      drop_path: probability to drop the last block's branch; those before it in proportion.
      epsilon, momentum: of BatchNorm; the momentum is the share that is kept.
    """

    depths: tuple[int, ...]
    features: int = 64
    stride_last: bool = False
    use_bias: bool = False
    zero_border: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 1, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train, momentum=self.momentum, epsilon=self.epsilon)

        def stem(x: Array) -> Array:
            return conv(self.features, 7, 2, padding=3, use_bias=self.use_bias, name="stem_conv")(x)

        def block(x: Array, index: int, i: int) -> Array:
            if self.stride_last:
                shrinks = i == self.depths[index] - 1 and index < len(self.depths) - 1
            else:
                shrinks = i == 0 and index > 0
            name = f"stage{index + 1}_block{i + 1}"
            rate = drop_rate(self.drop_path, self.depths, index, i)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            return PreActivationBottleneck(
                4 * self.features * 2**index,
                stride=2 if shrinks else 1,
                project=i == 0,
                conv=conv,
                norm=norm,
                drop=functools.partial(drop, train=train),
                use_bias=self.use_bias,
                name=name,
            )(x)

        def stage(x: Array, index: int) -> Array:
            if index == 0 and self.zero_border:
                x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
            elif index == 0:
                x = max_pool(x, (3, 3), (2, 2), 1)
            for i in range(self.depths[index]):
                x = run_block(self, block, x, index=index, i=i)
            return x

        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i + 1}": functools.partial(stage, index=i) for i in range(len(self.depths))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = nn.relu(norm(name="final_bn")(outputs[-1]))
        return classify(self, x, train=train, kernel_init=dense_uniform, dropout=self.dropout)


_variant = functools.partial(
    make_variant,
    ResNetV2,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="He et al., Identity mappings in deep residual networks",
    year=2016,
)
_keras = functools.partial(
    _variant, stride_last=True, use_bias=True, zero_border=True, epsilon=1.001e-5, momentum=0.99
)

VARIANTS = {
    "resnet50v2": _keras(25_568_360, 3_482_255_360, 45_440, depths=DEPTHS[50]),
    "resnet101v2": _keras(44_577_896, 7_194_476_544, 97_664, depths=DEPTHS[101]),
    "resnet152v2": _keras(60_236_904, 10_906_697_728, 143_744, depths=DEPTHS[152]),
    "resnetv2_50": _variant(25_549_352, 4_089_184_256, 45_440, depths=DEPTHS[50]),
    "resnetv2_101": _variant(44_541_480, 7_801_405_440, 97_664, depths=DEPTHS[101]),
    "resnetv2_152": _variant(60_185_128, 11_513_626_624, 143_744, depths=DEPTHS[152]),
}

ALIASES = {f"resnetv2_{depth}_timm": f"resnetv2_{depth}" for depth in (50, 101, 152)}

DEVIATIONS = (
    Deviation(
        "resnet50v2, resnet101v2, resnet152v2, resnetv2_*",
        "A stage begins with the stride, on the first 1x1 of its first block (authors' Torch "
        "files).",
        "TF-slim and Keras end all stages but the last with the stride, on the 3x3 of the last "
        "block; timm begins with it, on the 3x3.",
        "`resnet*v2` is Keras', `resnetv2_*` is timm's; their weights are not exchangeable.",
    ),
    Deviation(
        "resnet50v2, resnet101v2, resnet152v2, resnetv2_*",
        "Convolutions have no bias; BatchNorm and ReLU follow the stem's convolution.",
        "Both leave BatchNorm and ReLU in the stem to the first block, after pooling; Keras has "
        "biases in the stem, the shortcuts and the last convolution of each block, and pools with "
        "a border of zeros, which may exceed the map there.",
        "As the port of the same name; arguments of `ResNetV2` choose each.",
    ),
)
