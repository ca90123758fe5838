"""ResNets and the plain networks they are compared with.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016 (arXiv:1512.03385),
Table 1, and section 4.2 for CIFAR-10. Trained by SGD with momentum 0.9 and weight decay 1e-4.
ResNeXt and SE-ResNet are this network too (`resnext.py`, `senet.py`).
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._residual import (
    BasicBlock,
    Bottleneck,
    Shortcut,
    dense_uniform,
    drop_rate,
    he_normal,
)
from flaxcnn.models._stride import dilate
from flaxcnn.models._variant import make_variant

Array = jax.Array


class ResNet(Network):
    """ResNet: [N, H, W, C] -> float32 logits [N, num_classes].

    The output of the stem is that before its pooling, with which the first stage begins.

    Attributes:
      depths: blocks in each stage; from stage to stage maps halve and channels double.
      bottleneck: blocks of three convolutions with 4 times the features, from depth 50 on.
      features: channels of the stem and of the first stage's narrow convolutions.
      cifar: a stem for 32x32 images, 3x3 without pooling, and not 7x7 with stride 2 and pooling.
      ceil_pool: pooling in the stem as in Caffe, without a border but with the last, cut window.
      shortcut: "project" where the shape changes (B in the paper), "pad" with zeros (A),
        "project_all" (C), or "none": a plain network.
      stride_first: the stride of a bottleneck on its first 1x1, as in the paper, not on its 3x3.
      groups, group_width: of a bottleneck's 3x3 in the first stage (ResNeXt).
      se_reduction: of squeeze-and-excitation in each block (SE-ResNet), 0 for none.
      dropout: probability to drop a feature before the classifier.
      drop_path: probability to drop the last block's branch; those before it in proportion.
      epsilon: of BatchNorm; 1.001e-5 in Keras.
      output_stride: pixels of the image that a step in the last map is, 8, 16 or 32, by dilation.
    """

    depths: tuple[int, ...]
    bottleneck: bool = False
    features: int = 64
    cifar: bool = False
    ceil_pool: bool = False
    shortcut: Shortcut = "project"
    stride_first: bool = False
    groups: int = 1
    group_width: int = 64
    se_reduction: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-5
    output_stride: int = 32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 3 if self.ceil_pool else 1, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train, epsilon=self.epsilon)
        strides = (1 if self.cifar else 4, 1, *(2,) * (len(self.depths) - 1))
        dilated = dilate(strides, self.output_stride, self)[1:]

        def stem(x: Array) -> Array:
            size, stride, border = (3, 1, 1) if self.cifar else (7, 2, 3)
            x = conv(self.features, size, stride, padding=border, name="stem_conv")(x)
            return nn.relu(norm(name="stem_bn")(x))

        def block(x: Array, index: int, i: int) -> Array:
            name = f"stage{index + 1}_block{i + 1}"
            rate = drop_rate(self.drop_path, self.depths, index, i)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            features = self.features * 2**index
            common = {
                "stride": dilated[index].stride if i == 0 else 1,
                "dilation": dilated[index][1:3] if i == 0 else (dilated[index].rest,) * 2,
                "shortcut": self.shortcut,
                "conv": conv,
                "norm": norm,
                "drop": functools.partial(drop, train=train),
                "se_reduction": self.se_reduction,
                "name": name,
            }
            if not self.bottleneck:
                return BasicBlock(features, **common)(x)
            bottleneck = Bottleneck(
                4 * features,
                width=features * self.group_width // 64 * self.groups,
                groups=self.groups,
                stride_first=self.stride_first,
                **common,
            )
            return bottleneck(x)

        def stage(x: Array, index: int) -> Array:
            if index == 0 and not self.cifar:
                x = max_pool(x, (3, 3), (2, 2), 0 if self.ceil_pool else 1, self.ceil_pool)
            for i in range(self.depths[index]):
                x = run_block(self, block, x, index=index, i=i)
            return x

        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i + 1}": functools.partial(stage, index=i) for i in range(len(self.depths))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(
            self, outputs[-1], train=train, kernel_init=dense_uniform, dropout=self.dropout
        )


# Table 1: blocks per stage.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


BY_DEPTH = {depth: {"depths": DEPTHS[depth], "bottleneck": depth >= 50} for depth in DEPTHS}

_variant = functools.partial(
    make_variant,
    ResNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="He et al., Deep residual learning for image recognition",
    year=2015,
)
_cifar = functools.partial(
    make_variant,
    ResNet,
    num_classes=10,
    features=16,
    cifar=True,
    shortcut="pad",
    input_shape=(32, 32, 3),
    paper="He et al., Deep residual learning for image recognition, section 4.2",
    year=2015,
)
_plain = functools.partial(_variant, shortcut="none")
_v1 = functools.partial(_variant, stride_first=True)

VARIANTS = {
    "plain18": _plain(11_515_688, 1_794_805_760, 7_808, **BY_DEPTH[18]),
    "plain34": _plain(21_623_848, 3_644_493_824, 15_232, **BY_DEPTH[34]),
    "resnet18": _variant(11_689_512, 1_814_073_344, 9_600, **BY_DEPTH[18]),
    "resnet34": _variant(21_797_672, 3_663_761_408, 17_024, **BY_DEPTH[34]),
    "resnet34_a": _variant(21_623_848, 3_644_493_824, 15_232, **BY_DEPTH[34], shortcut="pad"),
    "resnet34_c": _variant(
        22_716_840, 3_830_747_136, 22_784, **BY_DEPTH[34], shortcut="project_all"
    ),
    "resnet50": _variant(25_557_032, 4_089_184_256, 53_120, **BY_DEPTH[50]),
    "resnet50_v1": _v1(25_557_032, 3_857_973_248, 53_120, **BY_DEPTH[50]),
    "resnet101": _variant(44_549_160, 7_801_405_440, 105_344, **BY_DEPTH[101]),
    "resnet101_v1": _v1(44_549_160, 7_570_194_432, 105_344, **BY_DEPTH[101]),
    "resnet152": _variant(60_192_808, 11_513_626_624, 151_424, **BY_DEPTH[152]),
    "resnet152_v1": _v1(60_192_808, 11_282_415_616, 151_424, **BY_DEPTH[152]),
    # Section 4.2: 6n + 2 layers.
    "cifar_resnet20": _cifar(269_722, 40_551_040, 1_376, depths=(3, 3, 3)),
    "cifar_resnet32": _cifar(464_154, 68_862_592, 2_272, depths=(5, 5, 5)),
    "cifar_resnet44": _cifar(658_586, 97_174_144, 3_168, depths=(7, 7, 7)),
    "cifar_resnet56": _cifar(853_018, 125_485_696, 4_064, depths=(9, 9, 9)),
    "cifar_resnet110": _cifar(1_727_962, 252_887_680, 8_096, depths=(18, 18, 18)),
}

DEVIATIONS = (
    Deviation(
        "resnet50, resnet101, resnet152",
        "A bottleneck's stride is on its first 1x1 (authors' Caffe files).",
        "torchvision and timm put it on the 3x3 (v1.5); Keras keeps the paper's.",
        "The plain name is torchvision's, so that its weights fit; `*_v1` is the paper's. They "
        "have the same parameters; v1.5 takes 6 % more multiply-adds in depth 50.",
    ),
    Deviation(
        "resnet*_v1",
        "Convolutions have no bias (only conv1 of the authors' ResNet-50 file has one).",
        "Keras gives every convolution a bias, which BatchNorm cancels.",
        "No biases; converting from Keras folds them into BatchNorm's mean.",
    ),
    Deviation(
        "resnet*_v1",
        "BatchNorm's epsilon is 1e-5; the maximum is taken over windows without a border, the last "
        "one cut (Caffe).",
        "Keras: 1.001e-5, and a border of one pixel.",
        "The border of the ports, and 1e-5: with Keras' weights take `epsilon=1.001e-5`, with the "
        "authors' `ceil_pool=True`.",
    ),
    Deviation(
        "resnet34",
        "The main curves use shortcut A (zeros for new channels); Table 3 compares A, B and C.",
        "torchvision, timm and the rest use B (projections where the shape changes).",
        "`resnet34` is B, `resnet34_a` and `resnet34_c` the other two.",
    ),
)
