"""Which independent implementation each network is compared with, and on what images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 10


class Reference(NamedTuple):
    """A network of another library, equal to one of ours when it has its weights."""

    model: str  # our name
    layout: str
    source: str  # where it is: a dotted name, and for timm "timm:name"
    side: int  # of the images, which are square and have three channels
    arguments: Mapping[str, Any] = {}  # of theirs, besides the number of classes
    kwargs: Mapping[str, Any] = {}  # of ours, besides the number of classes
    batch: int = 2
    gain: float = 1.0  # variance of the kernels times fan-in: 2 in plain networks, 1 in residual
    # Mean of the biases. Where a ReLU is near zero, rounding decides whether it passes gradients,
    # and PyTorch's gradients in float32 differ from its own in float64 by up to 1e-2. At 3 few are.
    offset: float = 0.0
    momentum: float = 0.9  # of our BatchNorm
    training: bool = True  # whether gradients and batch statistics are compared too
    auxiliary_weight: float = 0.3  # of each auxiliary classifier in the loss
    case: str = ""  # which of several with one model and layout, "-small"

    @property
    def is_deep(self) -> bool:
        """Whether it is compared with `pytest -m zoo` only."""
        return not DEEP.isdisjoint({self.model + self.case, self.path.stem}) or (
            self.is_second_layout
        )

    @property
    def is_second_layout(self) -> bool:
        """Whether another layout of the same network is compared, and of this one names, shapes."""
        return self.path.stem in SECOND_LAYOUTS

    @property
    def has_long_step(self) -> bool:
        """Whether its training step is compared with `pytest -m zoo` only."""
        return self.is_deep or self.model + self.case in LONG_STEPS

    @property
    def scale(self) -> tuple[float, float]:
        """The last arguments of `draw_weight`."""
        return self.gain, self.offset

    @property
    def path(self) -> Path:
        """The file of its golden outputs."""
        return GOLDEN / f"{self.model}{self.case}.{self.layout}.npz"


# The same blocks as in a smaller network, deeper or wider: compared with `pytest -m zoo` only, as
# compiling and drawing them takes long.
DEEP = {
    *(f"{family}{depth}" for family in ("resnet", "resnetv2_", "seresnet") for depth in (101, 152)),
    *("resnet101_v1", "resnet152_v1", "resnet101v2", "resnet152v2"),
    *("resnext101_32x4d", "resnext101_64x4d", "resnext101_32x8d", "seresnext101_32x4d"),
    *("seresnet101_v1", "seresnet152_v1", "seresnext50_32x4d_timm", "senet154"),
    *("resnet34", "seresnext50_32x4d"),
    *("vgg11_bn", "vgg13", "vgg13_bn", "vgg16_bn", "vgg19", "vgg19_bn"),
    *("densenet161", "densenet169", "densenet201", "densenet264"),
    *("nasnet_a_mobile", "nasnet_a_large", "nasnetalarge", "inception_v3_aux"),
    "inception_resnet_v2",
    *("mobilenetv2_140", "mobilenet_v2_1.30_224", "mobilenet_v2_1.40_224"),
    *("mobilenet_v1_0.50_128", "mobilenet_v1_0.75_128"),
    *("mobilenet_v2_0.50_96", "mobilenet_v2_0.75_96"),
    *("inception_v4", "darknet53", "resnext50_32x4d", "seresnet50_v1"),  # not their short forms
    # As torchvision's and NumPy's forms of them.
    *("inception_v3_keras.keras", "densenet121.keras", "nasnet_a_mobile-small.keras"),
    *("vgg16.torchvision", "mobilenet_v1_1.00_128", "mobilenet_v2_1.00_96"),
    "densenet121.torchvision",  # its short form; whole as in Keras
    "googlenet.torchvision",  # that with auxiliary classifiers
    *("seresnext101_32x4d_timm-short", "mobilenetv2_050"),
    "nasnet_a_large-small",  # its skipped reduction is compared with NumPy in test_nasnet.py
}
# "vgg11.torchvision" is VGG's second form with its dense layers, of 120 million weights.
SECOND_LAYOUTS = {
    "vgg11.torchvision",
    *(
        "fcn_resnet50.torchvision",
        "resnet18.timm",
        "resnet50.timm",
        "mobilenet_v2.timm",
        "vgg11.timm",
        "inception_v3.timm",
    ),
}
# Training steps that take long to compile or to draw, of layers that other networks' training steps
# have too.
LONG_STEPS = {
    *(
        "resnet50",
        "seresnet50_v1-short",
        "darknet53-short",
        "mobilenet_v2",
        "squeezenet1_1",
        "resnetv2_50",
    ),
    *("googlenet_bn_tv_aux", "inception_v3_keras", "inception_v4-short"),
    *("inception_resnet_v2-short", "nasnet_a_mobile-small", "resnet50v2", "resnext50_32x4d-short"),
    *("mobilenetv2_050", "mobilenet_v2_0.35_96", "mobilenet_v1_0.25_128", "xception"),
}

# AlexNet

ALEXNET = [
    Reference(
        "alexnet",
        "torchvision",
        "torchvision.models.alexnet",
        side=96,
        kwargs={"dropout": 0.0},
        gain=2.0,
    ),
]

# resnet
RESNET = [
    Reference(
        f"resnet{depth}",
        "torchvision",
        f"torchvision.models.resnet{depth}",
        side=64,
        batch=4 if depth in (18, 50) else 1,
        offset=3.0 if depth == 50 else 0.0,
        training=depth in (18, 50),
    )
    for depth in (18, 34, 50, 101, 152)
]
RESNET += [
    Reference(f"resnet{depth}", "timm", f"timm:resnet{depth}", side=64, batch=1, training=False)
    for depth in (18, 50)
]
RESNET += [
    Reference(
        f"resnet{depth}_v1",
        "keras",
        f"keras.applications.ResNet{depth}",
        side=64,
        kwargs={"epsilon": 1.001e-5},
        batch=1,
        training=False,  # their biases before BatchNorm have gradients of zero, ours are not there
    )
    for depth in (50, 101, 152)
]
# resnet_v2
RESNET_V2 = [
    Reference(
        f"resnet{depth}v2",
        "keras",
        f"keras.applications.ResNet{depth}V2",
        side=64,
        batch=4 if depth == 50 else 1,
        offset=3.0 if depth == 50 else 0.0,
        momentum=0.99,
        training=depth == 50,
    )
    for depth in (50, 101, 152)
]
RESNET_V2 += [
    Reference(
        f"resnetv2_{depth}",
        "timm",
        f"timm:resnetv2_{depth}",
        side=64,
        batch=4 if depth == 50 else 1,
        offset=3.0 if depth == 50 else 0.0,
        training=depth == 50,
    )
    for depth in (50, 101, 152)
]
# resnext
RESNEXT = [
    *(
        Reference(name, "torchvision", f"torchvision.models.{name}", 64, batch=1, training=False)
        for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
    ),
    *(
        Reference(name, "timm", f"timm:{name}", 64, batch=1, training=False)
        for name in ("resnext50_32x4d", "resnext101_32x4d")
    ),
    Reference(
        "resnext50_32x4d",
        "timm",
        "timm:resnext50_32x4d",
        side=64,
        arguments={"layers": (1, 2, 1, 1)},
        kwargs={"depths": (1, 2, 1, 1)},
        batch=4,
        offset=3.0,
        case="-short",
    ),
]
# senet
SENET = [
    Reference(
        "seresnet50_v1",
        "timm",
        "timm:legacy_seresnet50",
        side=64,
        arguments={"drop_rate": 0.0, "layers": (1, 2, 1, 1)},
        kwargs={"depths": (1, 2, 1, 1)},
        batch=4,
        offset=3.0,
        case="-short",
    )
]
SENET += [
    Reference(name, "timm", f"timm:{theirs}", 64, batch=1, training=False)
    for name, theirs in {
        "seresnet50": "seresnet50",
        "seresnet50_v1": "legacy_seresnet50",
        "seresnet101": "seresnet101",
        "seresnet101_v1": "legacy_seresnet101",
        "seresnet152": "seresnet152",
        "seresnet152_v1": "legacy_seresnet152",
        "seresnext50_32x4d": "legacy_seresnext50_32x4d",
        "seresnext50_32x4d_timm": "seresnext50_32x4d",
        "seresnext101_32x4d": "legacy_seresnext101_32x4d",
        "senet154": "legacy_senet154",
    }.items()
]
SENET += [  # equal to the others but for the pooling of the stem
    Reference(
        f"{name}_timm",
        "timm",
        f"timm:{name}",
        side=64,
        arguments={"layers": (1, 2, 1, 1)},
        kwargs={"depths": (1, 2, 1, 1)},
        batch=1,
        training=False,
        case="-short",
    )
    for name in ("seresnext101_32x4d", "senet154")
]

# MobileNet

MOBILENET = [
    Reference(
        "mobilenet_v1_0.25_128",
        "keras",
        "keras.applications.MobileNet",
        side=77,  # odd maps too
        arguments={"alpha": 0.25},
        kwargs={"dropout": 0.0},
        batch=4,
        momentum=0.99,
        gain=2.0,
    ),
    *(
        Reference(
            f"mobilenet_v1_{width:.2f}_128",
            "keras",
            "keras.applications.MobileNet",
            side=45,
            arguments={"alpha": width},
            gain=2.0,
            training=False,
        )
        for width in (0.5, 0.75, 1.0)
    ),
    Reference(
        "mobilenetv1_100",
        "timm",
        "timm:mobilenetv1_100",
        side=45,
        batch=4,
        gain=2.0,
        training=False,
    ),
]

# MobileNetV2

MOBILENET_V2 = [
    Reference(
        "mobilenet_v2",
        "torchvision",
        "torchvision.models.mobilenet_v2",
        side=64,
        kwargs={"dropout": 0.0},
        batch=4,
        offset=3.0,  # the middle of ReLU6
    ),
    Reference(
        "mobilenetv2_050",
        "timm",
        "timm:mobilenetv2_050",
        side=77,
        kwargs={"dropout": 0.0},
        batch=4,
    ),
    *(
        Reference(name, "timm", f"timm:mobilenetv2_{width}", side=45, training=False)
        for name, width in (("mobilenet_v2", "100"), ("mobilenetv2_140", "140"))
    ),
    Reference(
        "mobilenet_v2_0.35_96",
        "keras",
        "keras.applications.MobileNetV2",
        side=77,
        arguments={"alpha": 0.35},
        kwargs={"dropout": 0.0},
        batch=4,
        momentum=0.999,
    ),
    *(
        Reference(
            f"mobilenet_v2_{width:.2f}_{side}",
            "keras",
            "keras.applications.MobileNetV2",
            side=45,
            arguments={"alpha": width},
            training=False,
        )
        for width, side in ((0.5, 96), (0.75, 96), (1.0, 96), (1.3, 224), (1.4, 224))
    ),
]

# SqueezeNet

SQUEEZENET = [
    Reference(
        f"squeezenet1_{version}",
        "torchvision",
        f"torchvision.models.squeezenet1_{version}",
        side=side,  # a pooling has an even map, where rounding up matters
        kwargs={"dropout": 0.0},
        gain=2.0,
    )
    for version, side in ((0, 46), (1, 44))
]

# Inception-v4, Inception-ResNet

INCEPTION_V4 = [
    Reference("inception_v4", "timm", "timm:inception_v4", side=75, training=False),
    Reference(
        "inception_v4",
        "timm",
        "torch_models.shorten",
        side=75,
        arguments={
            "source": "timm:inception_v4",
            "cuts": (("features", 20, 22), ("features", 12, 18), ("features", 7, 10)),
        },
        kwargs={"depths": (1, 1, 1), "dropout": 0.0},
        batch=4,
        offset=3.0,
        case="-short",
    ),
]

INCEPTION_RESNET = [
    Reference("inception_resnet_v2", "timm", "timm:inception_resnet_v2", side=75, training=False),
    Reference(
        "inception_resnet_v2",
        "keras",
        "keras.applications.InceptionResNetV2",
        side=75,
        kwargs={"norm_scale": False},
        training=False,
    ),
    Reference(
        "inception_resnet_v2",
        "timm",
        "torch_models.shorten",
        side=75,
        arguments={
            "source": "timm:inception_resnet_v2",
            "cuts": (("repeat", 1, 10), ("repeat_1", 1, 20), ("repeat_2", 1, 9)),
        },
        kwargs={"depths": (1, 1, 2), "dropout": 0.0},
        batch=4,
        offset=3.0,
        case="-short",
    ),
]

# Darknet

DARKNET = [
    Reference(
        "darknet53",
        "timm",
        "timm:darknet53",
        side=64,
        kwargs={"negative_slope": 0.01},
        training=False,
    ),
    Reference(
        "darknet53",
        "timm",
        "torch_models.shorten",
        side=64,
        arguments={
            "source": "timm:darknet53",
            "cuts": tuple((f"stages.{stage}.blocks", 1, 8) for stage in range(5)),
        },
        kwargs={"negative_slope": 0.01, "depths": (1, 1, 1, 1, 1)},
        batch=4,
        offset=3.0,
        momentum=0.99,
        case="-short",
    ),
]

# VGG

VGG = [
    *(
        Reference(
            name,
            "torchvision",
            f"torchvision.models.{name}",
            side=64,
            kwargs={"dropout": 0.0},
            batch=4 if name == "vgg11_bn" else 2,
            gain=2.0,
            offset=3.0 if name == "vgg11_bn" else 0.0,
            training=name == "vgg11_bn",
        )
        for depth in (11, 13, 16, 19)
        for name in (f"vgg{depth}", f"vgg{depth}_bn")
    ),
    Reference("vgg11", "timm", "timm:vgg11", side=64, gain=2.0, training=False),
    *(
        Reference(
            f"vgg{depth}",
            "keras",
            f"keras.applications.VGG{depth}",
            side=64,
            kwargs={"map_side": 2},
            gain=2.0,
            training=False,
        )
        for depth in (16, 19)
    ),
]

# DenseNet

DENSENET = [
    *(
        Reference(
            f"densenet{depth}",
            "torchvision",
            f"torchvision.models.densenet{depth}",
            side=32,
            training=False,
        )
        for depth in (121, 161, 169, 201)
    ),
    Reference(
        "densenet264",
        "torchvision",
        "torchvision.models.densenet.DenseNet",
        side=32,
        arguments={"block_config": (6, 12, 64, 48)},
        training=False,
    ),
    Reference(  # the same layers and transitions, fewer
        "densenet121",
        "torchvision",
        "torchvision.models.densenet.DenseNet",
        side=61,  # odd maps, too
        arguments={"block_config": (2, 3, 2, 2)},
        kwargs={"depths": (2, 3, 2, 2)},
        batch=4,
        case="-small",
    ),
    Reference(
        "densenet121",
        "keras",
        "keras.applications.DenseNet121",
        side=32,
        kwargs={"epsilon": 1.001e-5},
        training=False,
    ),
]

# NASNet

NASNET = [
    Reference(
        "nasnet_a_mobile",
        "keras",
        "keras.applications.NASNetMobile",
        side=64,
        training=False,
    ),
    Reference(
        "nasnet_a_large",
        "keras",
        "keras.applications.NASNetLarge",
        side=33,
        batch=1,
        training=False,
    ),
    Reference("nasnetalarge", "timm", "timm:nasnetalarge", side=33, batch=1, training=False),
    *(
        Reference(  # the same cells, fewer
            f"nasnet_a_{size}",
            "keras",
            "keras.src.applications.nasnet.NASNet",
            side=side,
            arguments={
                "penultimate_filters": 192,
                "num_blocks": 1,
                "stem_block_filters": 8,
                "skip_reduction": size == "large",
            },
            kwargs={"features": 192, "cells": 1, "stem_features": 8, "dropout": 0.0},
            batch=4,
            momentum=0.9997,
            training=size == "mobile",
            case="-small",
        )
        for size, side in (("mobile", 96), ("large", 75))
    ),
]

# Xception

XCEPTION = [
    Reference(
        "xception",
        "keras",
        "keras.applications.Xception",
        side=71,
        kwargs={"dropout": 0.0},
        batch=4,
        offset=3.0,
        momentum=0.99,
    ),
]

# googlenet
GOOGLENET = [
    Reference(
        "googlenet",
        "torchvision",
        "torchvision.models.googlenet",
        side=64,
        arguments={"aux_logits": False, "init_weights": False},
        kwargs={"dropout": 0.0},
        batch=1,
        gain=2.0,
        training=False,
    ),
    Reference(
        "googlenet_bn_tv_aux",
        "torchvision",
        "torchvision.models.googlenet",
        side=79,  # maps of 5x5 and not 4x4 below the auxiliary classifiers
        arguments={"aux_logits": True, "init_weights": False},
        kwargs={"dropout": 0.0, "auxiliary_dropout": 0.0},
        batch=4,
        offset=3.0,
    ),
]

# inception_v3
INCEPTION_V3 = [
    Reference(
        "inception_v3",
        "torchvision",
        "torchvision.models.inception_v3",
        side=75,
        arguments={"aux_logits": False, "init_weights": False},
        kwargs={"dropout": 0.0},
        batch=1,
        gain=2.0,
        training=False,
    ),
    Reference(
        "inception_v3",
        "timm",
        "timm:inception_v3",
        side=75,
        kwargs={"dropout": 0.0},
        batch=1,
        gain=2.0,
        training=False,
    ),
    Reference(
        "inception_v3_aux",
        "torchvision",
        "torchvision.models.inception_v3",
        side=299,  # the least that the auxiliary classifier takes
        arguments={"aux_logits": True, "init_weights": False},
        kwargs={"dropout": 0.0},
        offset=3.0,
    ),
    Reference(
        "inception_v3_keras",
        "keras",
        "keras.applications.InceptionV3",
        side=107,
        batch=3,
        offset=3.0,
        momentum=0.99,
    ),
]

# FCN: the auxiliary head is compared by name and shape, and computes what the other does.
FCN = [
    Reference(
        "fcn_resnet50",
        "torchvision",
        "torchvision.models.segmentation.fcn_resnet50",
        side=65,  # maps that no stride divides
        arguments={"weights_backbone": None, "aux_loss": True},
        kwargs={"auxiliary": True},
        batch=1,
        training=False,
    ),
]

REFERENCES = [
    *DENSENET,
    *NASNET,
    *XCEPTION,
    *ALEXNET,
    *RESNET,
    *RESNET_V2,
    *RESNEXT,
    *SENET,
    *MOBILENET,
    *MOBILENET_V2,
    *SQUEEZENET,
    *INCEPTION_V4,
    *INCEPTION_RESNET,
    *DARKNET,
    *VGG,
    *GOOGLENET,
    *INCEPTION_V3,
    *FCN,
]
