"""ResNeXt: residual networks whose bottlenecks work in groups.

Xie, Girshick, Dollar, Tu, He: Aggregated residual transformations for deep neural networks, CVPR
2017 (arXiv:1611.05431), Table 1. A name's CxD means C groups of D channels in the first stage. The
network is `ResNet` with groups; the stride is on the 3x3. Trained as ResNet, by batches of 256.
"""

from flaxcnn.models._deviation import Deviation
from flaxcnn.models._variant import Variant
from flaxcnn.models.resnet import DEPTHS, ResNet


def _make_variant(
    depth: int, groups: int, group_width: int, params: int, macs: int, statistics: int
) -> Variant:
    return Variant(
        network=ResNet,
        kwargs={
            "num_classes": 1000,
            "depths": DEPTHS[depth],
            "bottleneck": True,
            "groups": groups,
            "group_width": group_width,
        },
        input_shape=(224, 224, 3),
        params=params,
        macs=macs,
        statistics=statistics,
        paper="Xie et al., Aggregated residual transformations for deep neural networks",
        year=2016,
    )


VARIANTS = {
    "resnext50_32x4d": _make_variant(50, 32, 4, 25_028_904, 4_230_479_872, 68_224),
    "resnext101_32x4d": _make_variant(101, 32, 4, 44_177_704, 7_969_996_800, 137_856),
    "resnext101_64x4d": _make_variant(101, 64, 4, 83_455_272, 15_460_270_080, 202_880),
    "resnext101_32x8d": _make_variant(101, 32, 8, 88_791_336, 16_414_015_488, 202_880),
}

DEVIATIONS = (
    Deviation(
        "resnext101_32x8d",
        "Not in the paper, which doubles 32x4d in 64x4d.",
        "torchvision and timm have it, with weights.",
        "There, under their name.",
    ),
)
