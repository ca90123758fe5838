"""MobileNet: depthwise separable convolutions, thinner and smaller by two multipliers.

Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam: MobileNets: efficient convolutional
neural networks for mobile vision applications, 2017 (arXiv:1704.04861), Table 1. Trained by RMSProp
with little or no weight decay on depthwise kernels. What the paper leaves open is as in the
authors' TF-slim code: ReLU6, BatchNorm, initialisation.
"""

import functools
from typing import Any, Literal

import jax
from flax import linen as nn

from flaxcnn.layers import Conv
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._stride import dilate, pad_same
from flaxcnn.models._variant import make_variant

Array = jax.Array

slim_normal = nn.initializers.truncated_normal(0.09)

# Table 1: channels and stride of each depthwise separable block, in stages of one resolution. (The
# table prints stride 2 in the last block too, where the map stays 7x7.)
STAGES = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


class SeparableBlock(nn.Module):
    """3x3 depthwise, then 1x1, each followed by BatchNorm and `activation`.

    `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train mode chosen;
    `padding` and `dilation` are those of the 3x3.
    """

    features: int
    stride: int
    padding: Any
    activation: Any
    conv: Any
    norm: Any
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/stride, W/stride, features]."""
        channels = x.shape[-1]
        depthwise = self.conv(
            channels,
            3,
            self.stride,
            self.padding,
            dilation=self.dilation,
            groups=channels,
            name="depthwise",
        )
        x = self.activation(self.norm(name="depthwise_bn")(depthwise(x)))
        x = self.conv(self.features, 1, name="pointwise")(x)
        return self.activation(self.norm(name="pointwise_bn")(x))


class MobileNet(Network):
    """MobileNet: [N, H, W, C] -> float32 logits [N, num_classes].

    The stages that `features_only` returns are timm's, the last blocks of each resolution.

    Attributes:
      width: the width multiplier alpha; channels are rounded down.
      padding: of the 3x3 convolutions with stride 2. "same": as in TF-slim, the odd zero at the
        bottom and right; "keras": likewise, but one zero also where a map's side is odd, of which
        a pixel is then lost (not in the first convolution); "symmetric": one zero on every side, as
        in timm. "same" and "keras" are equal for sides that are multiples of 32.
      relu6: activations between 0 and 6, and not just above 0.
      dropout: of the pooled features.
      epsilon, momentum: of BatchNorm.
      output_stride: pixels of the image that a step in the last map is, 8, 16 or 32, by dilation.
    """

    width: float = 1.0
    padding: Literal["same", "keras", "symmetric"] = "keras"
    relu6: bool = True
    dropout: float = 0.001
    epsilon: float = 1e-3
    momentum: float = 0.99
    output_stride: int = 32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 31 if self.padding == "keras" else 1, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=slim_normal)
        norm = make_norm(self, train, momentum=self.momentum, epsilon=self.epsilon)
        activation = nn.relu6 if self.relu6 else nn.relu
        strides = (2, *(blocks[0][1] for blocks in STAGES))
        dilated = dilate(strides, self.output_stride, self)[1:]

        def stem(x: Array) -> Array:
            border = 1 if self.padding == "symmetric" else "SAME"
            x = conv(int(32 * self.width), 3, 2, border, name="stem_conv")(x)
            return activation(norm(name="stem_bn")(x))

        def stage(x: Array, index: int) -> Array:
            if index == 0:
                x = run_block(self, stem, x)
            first = sum(map(len, STAGES[:index])) + 1
            stride, dilation, rest, taken = dilated[index]
            for number, (features, _) in enumerate(STAGES[index], first):
                padding: Any = dilation
                if self.padding == "keras" and stride * taken == 2:
                    padding = ((0, taken * dilation),) * 2
                elif self.padding == "same":
                    padding = pad_same(x, taken, dilation)
                block = SeparableBlock(
                    int(features * self.width),
                    stride,
                    padding,
                    activation,
                    conv,
                    norm,
                    dilation,
                    name=f"block{number}",
                )
                stride, dilation, taken = 1, rest, 1
                x = run_block(self, block, x)
            return x

        stages = {f"stage{i + 1}": functools.partial(stage, index=i) for i in range(len(STAGES))}
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(
            self, outputs[-1], train=train, kernel_init=slim_normal, dropout=self.dropout
        )


_variant = functools.partial(
    make_variant,
    MobileNet,
    num_classes=1000,
    paper="Howard et al., MobileNets: efficient convolutional networks for mobile vision",
    year=2017,
)

# Tables 6 and 7. Width: parameters, statistics, and for each side of the images multiply-adds.
SIZES = {
    1.0: (
        4_231_976,
        21_888,
        {224: 568_740_352, 192: 418_121_728, 160: 290_675_200, 128: 186_400_768},
    ),
    0.75: (
        2_585_560,
        16_416,
        {224: 325_400_448, 192: 239_273_472, 160: 166_396_800, 128: 106_770_432},
    ),
    0.5: (
        1_331_592,
        10_944,
        {224: 149_497_088, 192: 109_970_432, 160: 76_524_800, 128: 49_160_192},
    ),
    0.25: (
        470_072,
        5_472,
        {224: 41_030_272, 192: 30_212_608, 160: 21_059_200, 128: 13_570_048},
    ),
}


VARIANTS = {
    f"mobilenet_v1_{width:.2f}_{side}": _variant(
        params, macs, statistics, width=width, input_shape=(side, side, 3)
    )
    for width, (params, statistics, sides) in SIZES.items()
    for side, macs in sides.items()
} | {
    "mobilenetv1_100": _variant(
        4_231_976,
        568_740_352,
        21_888,
        padding="symmetric",
        dropout=0.0,
        epsilon=1e-5,
        momentum=0.9,
        input_shape=(224, 224, 3),
    )
}

ALIASES = {"mobilenet_v1": "mobilenet_v1_1.00_224"}

DEVIATIONS = (
    Deviation(
        "mobilenet_v1_*, mobilenetv1_100",
        "Figure 3 has ReLU.",
        "TF-slim, Keras and timm have ReLU6.",
        "ReLU6, so that public weights fit; `relu6=False` is the paper's.",
    ),
    Deviation(
        "mobilenet_v1_*, mobilenetv1_100",
        "Nothing on padding; the authors' TF-slim code has SAME (the odd zero at the bottom and "
        "right) and BatchNorm with epsilon 1e-3.",
        "Keras: SAME in the first convolution, then one zero at the bottom and right whether the "
        "map is even or odd, epsilon 1e-3. timm: one zero on every side, epsilon 1e-5.",
        "`mobilenet_v1_*` is Keras', equal to TF-slim for sides that are multiples of 32 (the "
        "argument `padding`: 'keras', 'same', 'symmetric'); `mobilenetv1_100` is timm's.",
    ),
    Deviation(
        "mobilenet_v1_*",
        "Table 1 prints stride 2 in the last depthwise convolution, from 7x7 to 7x7.",
        "All ports have stride 1.",
        "Stride 1.",
    ),
)
