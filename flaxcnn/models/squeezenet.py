"""SqueezeNet, with and without bypass connections.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: SqueezeNet: AlexNet-level accuracy with 50x fewer
parameters and <0.5MB model size, 2016 (arXiv:1602.07360), Table 1 and section 5 (its
metaparameters), section 6 (bypass). Trained by SGD with momentum 0.9, weight decay 2e-4 and a
learning rate that falls linearly from 0.04.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, average, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array
Bypass = Literal["none", "simple", "complex"]
Shortcut = Literal["none", "identity", "project"]

caffe_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Fire(nn.Module):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side, all with ReLU; 2 * `expand` come out.

    `conv` is Conv with dtype and initialiser chosen. `shortcut` is around the module: "identity",
    "project" by a 1x1 convolution, or "none".
    """

    squeeze: int
    expand: int
    shortcut: Shortcut
    conv: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, 2 * expand]."""
        y = nn.relu(self.conv(self.squeeze, 1, name="squeeze")(x))
        narrow = nn.relu(self.conv(self.expand, 1, name="expand1x1")(y))
        wide = nn.relu(self.conv(self.expand, 3, padding=1, name="expand3x3")(y))
        y = jnp.concatenate([narrow, wide], -1)
        if self.shortcut == "none":
            return y
        if self.shortcut == "project":
            x = self.conv(2 * self.expand, 1, name="bypass")(x)
        return x + y


class SqueezeNet(Network):
    """SqueezeNet: [N, H, W, C] -> float32 logits [N, num_classes], none of them negative.

    Attributes:
      stem_features, stem_size: channels and kernel size of the first convolution.
      fires: modules after each of the three poolings.
      base: channels that the first two fire modules put out; each two after them put out as many
        more.
      squeeze_ratio: channels of the squeeze layer, as a share of those that come out.
      bypass: "simple" around the modules that do not change the number of channels, "complex"
        around the others too, by 1x1 convolutions.
      border: zeros around the map before the last 1x1 convolution, 1 in the authors' file.
      dropout: before the last convolution.
    """

    stem_features: int = 96
    stem_size: int = 7
    fires: tuple[int, int, int] = (3, 4, 1)
    base: int = 128
    squeeze_ratio: float = 0.125
    bypass: Bypass = "none"
    border: int = 0
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, self.stem_size + 14, self)
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=caffe_xavier)

        def stem(x: Array) -> Array:
            return nn.relu(conv(self.stem_features, self.stem_size, 2, 0, name="stem_conv")(x))

        def stage(x: Array, index: int) -> Array:
            x = max_pool(x, (3, 3), (2, 2), ceil_mode=True)
            first = sum(self.fires[:index])
            for i in range(first, first + self.fires[index]):
                features = self.base * (i // 2 + 1)
                shortcut: Shortcut = "none"
                if self.bypass != "none" and x.shape[-1] == features:
                    shortcut = "identity"
                elif self.bypass == "complex":
                    shortcut = "project"
                squeeze = int(self.squeeze_ratio * features)
                fire = Fire(squeeze, features // 2, shortcut, conv, name=f"fire{i + 2}")
                x = run_block(self, fire, x)
            return x

        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i + 1}": functools.partial(stage, index=i) for i in range(len(self.fires))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = outputs[-1]
        if not self.num_classes:
            return average(self, x).astype(jnp.float32)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        init = nn.initializers.normal(0.01)
        classifier = Conv(
            self.num_classes, 1, padding=self.border, kernel_init=init, name="classifier"
        )
        return average(self, nn.relu(classifier(x)))


_variant = functools.partial(
    make_variant,
    SqueezeNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
    year=2016,
)

VARIANTS = {
    "squeezenet1_0": _variant(1_248_424, 818_924_576),
    "squeezenet1_0_caffe": _variant(1_248_424, 861_339_936, border=1, input_shape=(227, 227, 3)),
    "squeezenet1_0_simple_bypass": _variant(1_248_424, 818_924_576, bypass="simple"),
    "squeezenet1_0_complex_bypass": _variant(1_589_672, 1_165_298_720, bypass="complex"),
    "squeezenet1_1": _variant(
        1_235_496, 349_151_936, stem_features=64, stem_size=3, fires=(2, 2, 4)
    ),
}

DEVIATIONS = (
    Deviation(
        "squeezenet1_0, squeezenet1_0_caffe",
        "Table 1 prints maps of 13x13 before and after conv10; the authors' prototxt has a border "
        "of 1 around the 1x1 conv10, hence 15x15 maps, whose edge is the ReLU of the bias.",
        "torchvision has no border.",
        "`squeezenet1_0` is torchvision's, `squeezenet1_0_caffe` the authors' file (227x227); the "
        "argument is `border`.",
    ),
    Deviation(
        "squeezenet1_0*",
        "Table 1 takes 224x224 to 111x111 in conv1; the authors' prototxt has images of 227x227 "
        "and no border: 111x111 comes of 227, 109x109 of 224.",
        "torchvision has no border either, and 224x224.",
        "No border, and poolings that keep the cut window (Caffe's rounding up), in every form.",
    ),
    Deviation(
        "squeezenet1_0_complex_bypass",
        "Table 3 says 7.7 MB.",
        "No port; the figure, taken literally, has 1,589,672 parameters, 6.4 MB.",
        "The figure: 1x1 convolutions around fire 2, 4, 6, 8, identities around 3, 5, 7, 9.",
    ),
    Deviation(
        "squeezenet*",
        "The authors' prototxt initialises by Caffe's xavier (fan-in), conv10 by N(0, 0.01).",
        "torchvision: He's uniform initialiser, conv10 by N(0, 0.01).",
        "The authors'.",
    ),
)
