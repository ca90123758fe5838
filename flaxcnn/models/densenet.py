"""DenseNets: every layer sees the maps of all layers before it in its block.

Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks, CVPR 2017
(arXiv:1608.06993), Table 1, in the form DenseNet-BC. Trained by SGD with Nesterov momentum 0.9 and
weight decay 1e-4.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, avg_pool, max_pool
from flaxcnn.layers.barriers import compute_gradient_once
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
dense_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class DenseLayer(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3; `growth` maps are joined to those that came in.

    `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train mode chosen; `drop`
    makes the dropout that follows each convolution. The 1x1 has `bottleneck` * growth channels.
    """

    growth: int
    bottleneck: int
    conv: Any
    norm: Any
    drop: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, C + growth]."""
        y = nn.relu(self.norm(name="bn1")(x))
        y = self.drop(name="drop1")(self.conv(self.bottleneck * self.growth, 1, name="conv1")(y))
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.drop(name="drop2")(self.conv(self.growth, 3, padding=1, name="conv2")(y))
        return compute_gradient_once(jnp.concatenate([x, y], axis=-1))


class Transition(nn.Module):
    """BN-ReLU-1x1 to `features` channels and an average over 2x2; see DenseLayer."""

    features: int
    conv: Any
    norm: Any
    drop: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/2, W/2, features], rounded down."""
        x = nn.relu(self.norm(name="bn")(x))
        x = self.drop(name="drop")(self.conv(self.features, 1, name="conv")(x))
        return avg_pool(x, (2, 2), (2, 2))


class DenseNet(Network):
    """DenseNet-BC: [N, H, W, C] -> float32 logits [N, num_classes].

    The output of a stage is that of its dense block, before the transition; the last one's goes
    through the network's last BatchNorm and ReLU. The stem's is that before its pooling.

    Attributes:
      depths: layers in each dense block.
      growth: maps that each layer adds (k in the paper).
      stem_features: channels of the stem.
      bottleneck: channels of a layer's 1x1 convolution, in `growth`.
      compression: share of the channels that a transition keeps (theta in the paper).
      epsilon: of BatchNorm.
      dropout: after each convolution but the first; 0.2 in the paper on CIFAR and SVHN without
        augmentation, none on ImageNet.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem_features: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    epsilon: float = 1e-5
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        blocks = len(self.depths)
        check_images(images, 4 * 2 ** (blocks - 1) - 3, self)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train, epsilon=self.epsilon)

        def drop(name: str) -> Any:
            return functools.partial(Dropout(self.dropout, self.axis_name, name=name), train=train)

        choices = {"conv": conv, "norm": norm, "drop": drop}

        def stem(x: Array) -> Array:
            x = conv(self.stem_features, 7, 2, padding=3, name="stem_conv")(x)
            return nn.relu(norm(name="stem_bn")(x))

        def stage(x: Array, index: int) -> Array:
            if index == 0:
                x = max_pool(x, (3, 3), (2, 2), 1)
            else:
                features = int(x.shape[-1] * self.compression)
                transition = Transition(features, **choices, name=f"transition{index}")
                x = run_block(self, transition, x)
            for i in range(self.depths[index]):
                name = f"stage{index + 1}_layer{i + 1}"
                layer = DenseLayer(self.growth, self.bottleneck, **choices, name=name)
                x = run_block(self, layer, x)
            return nn.relu(norm(name="final_bn")(x)) if index == blocks - 1 else x

        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i + 1}": functools.partial(stage, index=i) for i in range(blocks)
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(self, outputs[-1], train=train, kernel_init=dense_uniform)


# Table 1: layers per dense block. 161 is the wide one of the authors' repository.
DEPTHS = {
    121: (6, 12, 24, 16),
    161: (6, 12, 36, 24),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}


_variant = functools.partial(
    make_variant,
    DenseNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Huang et al., Densely connected convolutional networks",
    year=2016,
)

VARIANTS = {
    "densenet121": _variant(7_978_856, 2_834_161_664, 83_648, depths=DEPTHS[121]),
    "densenet161": _variant(
        28_681_000, 7_727_907_072, 219_936, depths=DEPTHS[161], growth=48, stem_features=96
    ),
    "densenet169": _variant(14_149_480, 3_359_843_328, 158_400, depths=DEPTHS[169]),
    "densenet201": _variant(20_013_928, 4_291_365_888, 229_056, depths=DEPTHS[201]),
    "densenet264": _variant(33_337_704, 5_751_653_376, 398_528, depths=DEPTHS[264]),
}

DEVIATIONS = (
    Deviation(
        "densenet*",
        "BatchNorm's epsilon is not given (1e-5 in the authors' Torch files).",
        "torchvision and timm have 1e-5, Keras 1.001e-5.",
        "1e-5; for Keras' weights create the model with epsilon=1.001e-5.",
    ),
    Deviation(
        "densenet*",
        "Dropout, where used (CIFAR and SVHN without augmentation), after each convolution but "
        "the first.",
        "torchvision and timm drop only the output of each layer; Keras has no dropout.",
        "The argument `dropout` does as the paper; by default 0, as everybody on ImageNet.",
    ),
)
