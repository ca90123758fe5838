"""SE-ResNet, SE-ResNeXt and SENet-154: squeeze-and-excitation on every residual branch.

Hu, Shen, Albanie, Sun, Wu: Squeeze-and-excitation networks, CVPR 2018 (arXiv:1709.01507), Table 1
and appendix. Reduction 16. SE-ResNet and SE-ResNeXt are `ResNet` with gates; SENet-154 is a network
of its own here.
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._residual import Bottleneck, dense_uniform, drop_rate, he_normal
from flaxcnn.models._variant import make_variant
from flaxcnn.models.resnet import BY_DEPTH, DEPTHS, ResNet

Array = jax.Array


class SENet(Network):
    """SENet-154: [N, H, W, C] -> float32 logits [N, num_classes].

    Against SE-ResNeXt-152 64x4d: three 3x3 in the stem, half as many channels in the first 1x1 of a
    block, a 3x3 in the shortcuts that shrink the map, and dropout.

    Attributes:
      depths: blocks in each stage; from stage to stage maps halve and channels double.
      features: channels of the first stage's 3x3 and of its output.
      groups: of the 3x3 of each block.
      ceil_pool: pooling in the stem as in Caffe, without a border but with the last, cut window.
      se_reduction: of squeeze-and-excitation in each block.
      dropout: probability to drop a feature before the classifier.
      drop_path: probability to drop the last block's branch; those before it in proportion.
    """

    depths: tuple[int, ...] = DEPTHS[152]
    features: int = 256
    groups: int = 64
    ceil_pool: bool = True
    se_reduction: int = 16
    dropout: float = 0.2
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 3 if self.ceil_pool else 1, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train)

        def stem(x: Array) -> Array:
            half = self.features // 4
            for i, (features, stride) in enumerate(((half, 2), (half, 1), (2 * half, 1)), 1):
                x = conv(features, 3, stride, padding=1, name=f"stem_conv{i}")(x)
                x = nn.relu(norm(name=f"stem_bn{i}")(x))
            return x

        def block(x: Array, index: int, i: int) -> Array:
            features = self.features * 2**index
            name = f"stage{index + 1}_block{i + 1}"
            rate = drop_rate(self.drop_path, self.depths, index, i)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            return Bottleneck(
                features,
                width=features,
                stride=2 if i == 0 and index > 0 else 1,
                shortcut="project",
                conv=conv,
                norm=norm,
                drop=functools.partial(drop, train=train),
                groups=self.groups,
                se_reduction=self.se_reduction,
                reduced=features // 2,
                shortcut_size=3,
                name=name,
            )(x)

        def stage(x: Array, index: int) -> Array:
            if index == 0:
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


_variant = functools.partial(
    make_variant,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Hu et al., Squeeze-and-excitation networks",
    year=2017,
)
_resnet = functools.partial(_variant, ResNet, se_reduction=16)
_caffe = functools.partial(_resnet, stride_first=True, ceil_pool=True)
_groups = {"groups": 32, "group_width": 4}
_resnext50 = functools.partial(
    _resnet, 27_559_896, 4_232_994_816, 68_224, **BY_DEPTH[50], **_groups
)
_resnext101 = functools.partial(
    _resnet, 48_955_416, 7_974_739_968, 137_856, **BY_DEPTH[101], **_groups
)
_senet154 = functools.partial(_variant, SENet, 115_088_984, 20_688_363_520, 247_552)

VARIANTS = {
    "seresnet50": _resnet(28_088_024, 4_091_699_200, 53_120, **BY_DEPTH[50]),
    "seresnet50_v1": _caffe(28_088_024, 3_860_488_192, 53_120, **BY_DEPTH[50]),
    "seresnet101": _resnet(49_326_872, 7_806_148_608, 105_344, **BY_DEPTH[101]),
    "seresnet101_v1": _caffe(49_326_872, 7_574_937_600, 105_344, **BY_DEPTH[101]),
    "seresnet152": _resnet(66_821_848, 11_520_204_800, 151_424, **BY_DEPTH[152]),
    "seresnet152_v1": _caffe(66_821_848, 11_288_993_792, 151_424, **BY_DEPTH[152]),
    "seresnext50_32x4d": _resnext50(ceil_pool=True),
    "seresnext50_32x4d_timm": _resnext50(),
    "seresnext101_32x4d": _resnext101(ceil_pool=True),
    "seresnext101_32x4d_timm": _resnext101(),
    "senet154": _senet154(),
    "senet154_timm": _senet154(ceil_pool=False, dropout=0.0),
}

ALIASES = {
    "legacy_seresnet50": "seresnet50_v1",
    "legacy_seresnet101": "seresnet101_v1",
    "legacy_seresnet152": "seresnet152_v1",
    "legacy_seresnext50_32x4d": "seresnext50_32x4d",
    "legacy_seresnext101_32x4d": "seresnext101_32x4d",
    "legacy_senet154": "senet154",
}

DEVIATIONS = (
    Deviation(
        "seresnet50, seresnet101, seresnet152",
        "The authors' Caffe files have the stride on the first 1x1 and pool the stem without a "
        "border, the last window cut.",
        "timm's `legacy_seresnet*` do so too; its `seresnet*` have the stride on the 3x3 and a "
        "border of one pixel.",
        "The plain name is timm's, `*_v1` the authors', with `legacy_*` as an alias.",
    ),
    Deviation(
        "seresnext50_32x4d, seresnext101_32x4d, senet154",
        "The authors' Caffe files pool the stem without a border, the last window cut.",
        "timm's `legacy_*` do so too; its networks of the plain names have a border of one pixel.",
        "The plain name is the authors', with `legacy_*` as an alias; `*_timm` are timm's. The "
        "sizes are the same.",
    ),
    Deviation(
        "seresnet*_v1, seresnext50_32x4d, seresnext101_32x4d",
        "No dropout; SENet-154 drops 0.2 of the features.",
        "timm's `legacy_*` drop 0.2 in all of them.",
        "The paper's: 0.2 in `senet154` alone; `dropout` changes it.",
    ),
)
