"""ResNeXt: residual networks whose bottlenecks work in groups.

Xie, Girshick, Dollar, Tu, He: Aggregated residual transformations for deep neural networks, CVPR
2017 (arXiv:1611.05431), Table 1. A name's CxD means C groups of D channels in the first stage. The
network is `ResNet` with groups; the stride is on the 3x3. Trained as ResNet, by batches of 256.
"""

import functools

from flaxcnn.models._deviation import Deviation
from flaxcnn.models._variant import make_variant
from flaxcnn.models.resnet import BY_DEPTH, ResNet

_variant = functools.partial(
    make_variant,
    ResNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Xie et al., Aggregated residual transformations for deep neural networks",
    year=2016,
)
_resnext50 = functools.partial(_variant, **BY_DEPTH[50])
_resnext101 = functools.partial(_variant, **BY_DEPTH[101])

VARIANTS = {
    "resnext50_32x4d": _resnext50(25_028_904, 4_230_479_872, 68_224, groups=32, group_width=4),
    "resnext101_32x4d": _resnext101(44_177_704, 7_969_996_800, 137_856, groups=32, group_width=4),
    "resnext101_64x4d": _resnext101(83_455_272, 15_460_270_080, 202_880, groups=64, group_width=4),
    "resnext101_32x8d": _resnext101(88_791_336, 16_414_015_488, 202_880, groups=32, group_width=8),
}

DEVIATIONS = (
    Deviation(
        "resnext101_32x8d",
        "Not in the paper, which doubles 32x4d in 64x4d.",
        "torchvision and timm have it, with weights.",
        "There, under their name.",
    ),
)
