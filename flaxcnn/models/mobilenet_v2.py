"""MobileNetV2: inverted residuals and linear bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: inverted residuals and linear bottlenecks, CVPR
2018 (arXiv:1801.04381), Table 2. Trained by RMSProp with momentum 0.9, weight decay 4e-5, and a
learning rate of 0.045 that falls by 2 % per epoch. Initialised as in the authors' TF-slim code.
"""

import functools
from typing import Any, Literal

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._stride import dilate, pad_same
from flaxcnn.models._variant import make_variant
from flaxcnn.models.mobilenet import slim_normal

Array = jax.Array

# Table 2: expansion, channels, blocks, and stride of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
RESOLUTIONS = ((0,), (1,), (2,), (3, 4), (5, 6))  # the stages of each; the last is put out


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by a 3x3 depthwise, project by 1x1 without an activation.

    `expansion` times the channels lie between; 1 leaves the first 1x1 out. `padding` and `dilation`
    are those of the 3x3. `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train
    mode chosen; `drop` is applied to the branch before the sum, of which blocks that change the
    shape have none.
    """

    features: int
    expansion: int
    stride: int
    padding: Any
    conv: Any
    norm: Any
    drop: Any
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features]."""
        hidden, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = nn.relu6(self.norm(name="expand_bn")(self.conv(hidden, 1, name="expand")(y)))
        depthwise = self.conv(
            hidden,
            3,
            self.stride,
            self.padding,
            dilation=self.dilation,
            groups=hidden,
            name="depthwise",
        )
        y = nn.relu6(self.norm(name="depthwise_bn")(depthwise(y)))
        y = self.norm(name="project_bn")(self.conv(self.features, 1, name="project")(y))
        return x + self.drop(y) if self.stride == 1 and x.shape == y.shape else y


class MobileNetV2(Network):
    """MobileNetV2: [N, H, W, C] -> float32 logits [N, num_classes].

    The stages that `features_only` returns are timm's, the last of each resolution.

    Attributes:
      width: the width multiplier; channels are rounded to multiples of 8, and those of the last
        convolution are not fewer than 1280.
      padding: of the 3x3 convolutions with stride 2. "symmetric": one zero on every side, as in
        torchvision and timm; "same": as in TF-slim and Keras, the odd zero at the bottom and right.
      dropout: of the pooled features.
      drop_path: probability to drop the last block's branch; those before it in proportion.
      epsilon, momentum: of BatchNorm.
      output_stride: pixels of the image that a step in the last map is, 8, 16 or 32, by dilation.
    """

    width: float = 1.0
    padding: Literal["symmetric", "same"] = "symmetric"
    dropout: float = 0.2
    drop_path: float = 0.0
    epsilon: float = 1e-5
    momentum: float = 0.9
    output_stride: int = 32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 1, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=slim_normal)
        norm = make_norm(self, train, momentum=self.momentum, epsilon=self.epsilon)
        padding = {"symmetric": 1, "same": "SAME"}[self.padding]
        blocks = sum(repeats for _, _, repeats, _ in STAGES)
        strides = (2, *(stride for *_, stride in STAGES))
        dilated = dilate(strides, self.output_stride, self)[1:]

        def stem(x: Array) -> Array:
            features = round_to_eight(32 * self.width)
            x = conv(features, 3, 2, padding, name="stem_conv")(x)
            return nn.relu6(norm(name="stem_bn")(x))

        def block(x: Array, index: int, i: int) -> Array:
            expansion, features, _, _ = STAGES[index]
            stride, first, rest, taken = dilated[index]
            dilation, taken = (rest, 1) if i else (first, taken)
            depth = sum(repeats for _, _, repeats, _ in STAGES[:index]) + i
            name = f"stage{index + 1}_block{i + 1}"
            rate = self.drop_path * depth / (blocks - 1)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            return InvertedResidual(
                features=round_to_eight(features * self.width),
                expansion=expansion,
                stride=stride if i == 0 else 1,
                padding=pad_same(x, taken, dilation) if padding == "SAME" else dilation,
                dilation=dilation,
                conv=conv,
                norm=norm,
                drop=functools.partial(drop, train=train),
                name=name,
            )(x)

        def resolution(x: Array, indices: tuple[int, ...]) -> Array:
            if 0 in indices:
                x = run_block(self, stem, x)
            for index in indices:
                for i in range(STAGES[index][2]):
                    x = run_block(self, block, x, index=index, i=i)
            return x

        stages = {
            f"stage{indices[-1] + 1}": functools.partial(resolution, indices=indices)
            for indices in RESOLUTIONS
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = conv(round_to_eight(1280 * max(self.width, 1.0)), 1, name="head_conv")(outputs[-1])
        x = nn.relu6(norm(name="head_bn")(x))
        return classify(self, x, train=train, kernel_init=slim_normal, dropout=self.dropout)


def round_to_eight(channels: float) -> int:
    """Rounds to a multiple of 8, at least 8 and not below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


_variant = functools.partial(
    make_variant,
    MobileNetV2,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks",
    year=2018,
)
_keras = functools.partial(_variant, padding="same", epsilon=1e-3, momentum=0.999)

# Width: parameters, statistics, and for each side of the images multiply-adds.
SIZES = {
    1.4: (6_108_776, 47_936, {224: 582_195_824}),
    1.3: (5_386_792, 44_256, {224: 509_374_560}),
    1.0: (
        3_504_872,
        34_112,
        {224: 300_774_272, 192: 221_316_608, 160: 154_083_200, 128: 99_074_048, 96: 56_289_152},
    ),
    0.75: (
        2_636_424,
        26_640,
        {224: 209_069_792, 192: 153_941_888, 160: 107_295_200, 128: 69_129_728, 96: 39_445_472},
    ),
    0.5: (
        1_968_680,
        18_544,
        {224: 97_131_840, 192: 71_701_760, 160: 50_184_000, 128: 32_578_560, 96: 18_885_440},
    ),
    0.35: (
        1_677_128,
        14_080,
        {224: 59_285_808, 192: 43_896_512, 160: 30_874_800, 128: 20_220_672, 96: 11_934_128},
    ),
}

VARIANTS = {
    f"mobilenet_v2_{width:.2f}_{side}": _keras(
        params, macs, statistics, width=width, input_shape=(side, side, 3)
    )
    for width, (params, statistics, sides) in SIZES.items()
    for side, macs in sides.items()
} | {
    "mobilenet_v2": _variant(3_504_872, 300_774_272, 34_112),
    "mobilenetv2_050": _variant(1_968_680, 97_131_840, 18_544, width=0.5),
    "mobilenetv2_140": _variant(6_108_776, 582_195_824, 47_936, width=1.4),
}

ALIASES = {"mobilenetv2_100": "mobilenet_v2"}

DEVIATIONS = (
    Deviation(
        "mobilenet_v2*, mobilenetv2_*",
        "Nothing on padding; the authors' TF-slim code has SAME (the odd zero at the bottom and "
        "right) and BatchNorm with epsilon 1e-3.",
        "Keras as TF-slim; torchvision and timm have one zero on every side and epsilon 1e-5.",
        "`mobilenet_v2` is torchvision's and `mobilenetv2_*` timm's; `mobilenet_v2_WIDTH_SIDE` is "
        "Keras' and TF-slim's, for their weights. The argument is `padding`.",
    ),
    Deviation(
        "mobilenet_v2*, mobilenetv2_*",
        "Nothing on dropout; TF-slim keeps 0.8 of the pooled features.",
        "torchvision drops 0.2, Keras and timm nothing.",
        "0.2 under every name.",
    ),
    Deviation(
        "mobilenet_v2_1.40_224",
        "Table 4 prints 6.9M parameters.",
        "All ports have 6.1M: the last convolution is wider, channels are multiples of 8.",
        "The ports'.",
    ),
)
