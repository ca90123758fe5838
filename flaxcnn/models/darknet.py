"""Darknet-19 and Darknet-53, the classifiers under YOLOv2 and YOLOv3.

Redmon, Farhadi: YOLO9000: better, faster, stronger, CVPR 2017 (arXiv:1612.08242), Table 6; Redmon,
Farhadi: YOLOv3: an incremental improvement, 2018 (arXiv:1804.02767), Table 1. Trained by SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.1 times (1 - progress) ** 4.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, DropPath, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, average, classify, make_norm, run_block, run_stages
from flaxcnn.models._residual import drop_rate
from flaxcnn.models._variant import make_variant

Array = jax.Array

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # convolutional_layer.c


class Darknet19(Network):
    """Darknet-19: [N, H, W, C] -> float32 logits [N, num_classes].

    In a stage 3x3 and 1x1 convolutions alternate, the 1x1 to half the channels; each is followed
    by BatchNorm and a leaky ReLU. The classifier is a 1x1 convolution, averaged over the map.

    Attributes:
      depths: convolutions of each stage; from stage to stage maps halve and channels double.
      features: channels of the first stage.
      negative_slope: of the leaky ReLU.
      dropout: probability to drop a value before the classifier.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    depths: tuple[int, ...] = (1, 1, 3, 3, 5, 5)
    features: int = 32
    negative_slope: float = 0.1
    dropout: float = 0.0
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 1, self)
        layers = _choose_layers(self, train)

        def stage(x: Array, index: int) -> Array:
            if index > 0:  # Darknet keeps the last, cut window of an odd map
                x = max_pool(x, (2, 2), (2, 2), ceil_mode=True)
            features, name = self.features * 2**index, f"stage{index + 1}_"
            for i in range(self.depths[index]):
                width, size = (features // 2, 1) if i % 2 else (features, 3)
                conv = layers["conv"](width, size, padding=size // 2, name=f"{name}conv{i + 1}")
                x = layers["activate"](layers["norm"](name=f"{name}bn{i + 1}")(conv(x)))
            return x

        stages = {
            f"stage{i + 1}": functools.partial(run_block, self, stage, index=i)
            for i in range(len(self.depths))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = Dropout(self.dropout, self.axis_name, name="dropout")(outputs[-1], train=train)
        if self.num_classes:
            x = Conv(self.num_classes, 1, kernel_init=he_normal, name="classifier")(x)
        return average(self, x.astype(jnp.float32))


class DarkBlock(nn.Module):
    """1x1 to half the channels, 3x3 back, each with BatchNorm and leaky ReLU; then the sum."""

    conv: Any
    norm: Any
    activate: Any
    drop: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the same shape."""
        features = x.shape[-1]
        y = self.conv(features // 2, 1, name="conv1")(x)
        y = self.activate(self.norm(name="bn1")(y))
        y = self.conv(features, 3, padding=1, name="conv2")(y)
        y = self.activate(self.norm(name="bn2")(y))
        return x + self.drop(y)


class Darknet53(Network):
    """Darknet-53: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      depths: residual blocks of each stage; each begins with a 3x3 convolution of stride 2 that
        doubles the channels.
      features: channels of the first convolution.
      negative_slope: of the leaky ReLU.
      dropout: probability to drop a pooled feature.
      drop_path: probability to drop the last block's branch; those before it in proportion.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    features: int = 32
    negative_slope: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 1, self)
        layers = _choose_layers(self, train)

        def convolve(x: Array, features: int, stride: int, name: str) -> Array:
            x = layers["conv"](features, 3, stride, padding=1, name=f"{name}_conv")(x)
            return layers["activate"](layers["norm"](name=f"{name}_bn")(x))

        def block(x: Array, index: int, i: int) -> Array:
            name = f"stage{index + 1}_block{i + 1}"
            rate = drop_rate(self.drop_path, self.depths, index, i)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            return DarkBlock(**layers, drop=functools.partial(drop, train=train), name=name)(x)

        def stage(x: Array, index: int) -> Array:
            features = self.features * 2 ** (index + 1)
            name = f"stage{index + 1}_down"
            x = run_block(self, convolve, x, features=features, stride=2, name=name)
            for i in range(self.depths[index]):
                x = run_block(self, block, x, index=index, i=i)
            return x

        stem = functools.partial(convolve, features=self.features, stride=1, name="stem")
        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i + 1}": functools.partial(stage, index=i) for i in range(len(self.depths))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(self, outputs[-1], train=train, kernel_init=he_normal, dropout=self.dropout)


def _choose_layers(network: Darknet19 | Darknet53, train: bool) -> Mapping[str, Any]:
    return {
        "conv": functools.partial(Conv, use_bias=False, dtype=network.dtype, kernel_init=he_normal),
        "norm": make_norm(network, train, momentum=network.momentum),
        "activate": functools.partial(nn.leaky_relu, negative_slope=network.negative_slope),
    }


VARIANTS = {
    "darknet19": make_variant(
        Darknet19,
        20_842_376,
        2_790_989_824,
        14_400,
        num_classes=1000,
        input_shape=(224, 224, 3),
        paper="Redmon and Farhadi, YOLO9000: better, faster, stronger",
        year=2016,
    ),
    "darknet53": make_variant(
        Darknet53,
        41_609_928,
        9_285_115_904,
        35_712,
        num_classes=1000,
        input_shape=(256, 256, 3),
        paper="Redmon and Farhadi, YOLOv3: an incremental improvement",
        year=2018,
    ),
}

DEVIATIONS = (
    Deviation(
        "darknet19, darknet53",
        "The leaky ReLU has slope 0.1 (the authors' activations.h).",
        "timm's darknet53 has PyTorch's 0.01.",
        "0.1; weights of timm need negative_slope=0.01.",
    ),
    Deviation(
        "darknet19",
        "Max-pooling keeps the last, cut window of an odd map (the authors' maxpool_layer.c).",
        "No port in torchvision, timm or Keras; PyTorch drops that window by default.",
        "It is kept. At sides that are multiples of 32 there is no such window.",
    ),
    Deviation(
        "darknet19, darknet53",
        "The authors' CPU code adds 1e-6 to BatchNorm's deviation, the GPU code 1e-5 to the "
        "variance.",
        "timm: 1e-5 to the variance.",
        "1e-5 to the variance.",
    ),
)
