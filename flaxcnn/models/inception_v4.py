"""Inception-v4: Inception modules of one kind per map size, no residual connections.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the impact of residual
connections on learning, AAAI 2017 (arXiv:1602.07261), figures 3 to 9 and Table 1. Trained by
RMSProp with decay 0.9 and epsilon 1.0, learning rate 0.045 times 0.94 every two epochs. The stem
and `Branches` serve Inception-ResNet too (`inception_resnet.py`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, avg_pool, max_pool
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array

# The figures as text, read by `Branches`.
STEM = ("max/2 | 96@3/2", "64@1 96@3V | 64@1 64@1x7 64@7x1 96@3V", "192@3/2 | max/2")  # figure 3
INCEPTION_A = "96@1 | 64@1 96@3 | 64@1 96@3 96@3 | avg 96@1"  # figure 4
INCEPTION_B = (  # figure 5
    "384@1 | 192@1 224@1x7 256@7x1 | 192@1 192@7x1 224@1x7 224@7x1 256@1x7 | avg 128@1"
)
INCEPTION_C = (  # figure 6
    "256@1 | 384@1 256@1x3+256@3x1 | 384@1 448@3x1 512@1x3 256@1x3+256@3x1 | avg 256@1"
)
REDUCTION_A = "384@3/2 | 192@1 224@3 256@3/2 | max/2"  # figure 7, Table 1
REDUCTION_B = "192@1 192@3/2 | 256@1 256@1x7 320@7x1 320@3/2 | max/2"  # figure 8


class Branches(nn.Module):
    """Branches of convolutions side by side, joined along channels: a module of the figures.

    In `layout` branches are between bars and layers between spaces. 96@1x7 is a unit of 96
    channels with a window of 1 row and 7 columns, 96@3 has a 3x3 window; V leaves the border out,
    /2 makes the stride 2 and leaves it out; 256@1x3+256@3x1 are two units that see the same maps,
    joined. avg is 3x3 averaging of what lies inside the maps, max/2 3x3 pooling with stride 2.
    `unit` is ConvUnit with its layers chosen.
    """

    layout: str
    unit: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', the channels of all branches]."""
        outputs = []
        for i, branch in enumerate(self.layout.split("|"), 1):
            y, convolutions = x, 0
            for layer in branch.split():
                if layer == "max/2":
                    y = max_pool(y, (3, 3), (2, 2))
                elif layer == "avg":
                    y = avg_pool(y, (3, 3), padding=1, count_include_pad=False)
                else:
                    convolutions += 1
                    y = self._convolve(y, layer, f"branch{i}_conv{convolutions}")
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)

    def _convolve(self, x: Array, layer: str, name: str) -> Array:
        parts = layer.split("+")
        names = [name] if len(parts) == 1 else [f"{name}a", f"{name}b"]
        outputs = []
        for part, part_name in zip(parts, names, strict=True):
            features, _, window = part.partition("@")
            sides = [int(side) for side in window.removesuffix("/2").removesuffix("V").split("x")]
            size, stride = (sides[0], sides[-1]), 2 if window.endswith("/2") else 1
            padding = "VALID" if window.endswith(("V", "/2")) else "SAME"  # odd: symmetric
            outputs.append(self.unit(int(features), size, stride, padding, name=part_name)(x))
        return jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]


def start_stem(x: Array, unit: Any) -> Array:
    """The three convolutions that all networks of the paper begin with: 299 -> 147, 64 channels."""
    x = unit(32, 3, 2, name="stem_conv1")(x)
    x = unit(32, 3, name="stem_conv2")(x)
    return unit(64, 3, padding=1, name="stem_conv3")(x)


class InceptionV4(Network):
    """Inception-v4: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      depths: Inception modules of each kind, A, B and C.
      dropout: probability to drop a pooled feature (the paper keeps 0.8).
      norm_scale: whether BatchNorm has a scale; TensorFlow's weights have none.
    """

    depths: tuple[int, int, int] = (4, 7, 3)
    dropout: float = 0.2
    norm_scale: bool = True

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 75, self)
        # TF-slim's choice, where the paper is silent: a normal of variance 2 / fan-in, cut at 2.
        he_normal = nn.initializers.he_normal()
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train, epsilon=1e-3, use_scale=self.norm_scale)
        unit = functools.partial(ConvUnit, conv=conv, norm=norm)
        a, b, c = self.depths

        def modules(x: Array, kind: str, layout: str, depth: int) -> Array:
            for i in range(depth):
                module = Branches(layout, unit, name=f"inception_{kind}{i + 1}")
                x = run_block(self, module, x)
            return x

        def stage_a(x: Array) -> Array:
            x = run_block(self, Branches(STEM[1], unit, name="stem_mixed2"), x)
            x = run_block(self, Branches(STEM[2], unit, name="stem_mixed3"), x)
            return modules(x, "a", INCEPTION_A, a)

        def stage_b(x: Array) -> Array:
            x = run_block(self, Branches(REDUCTION_A, unit, name="reduction_a"), x)
            return modules(x, "b", INCEPTION_B, b)

        def stage_c(x: Array) -> Array:
            x = run_block(self, Branches(REDUCTION_B, unit, name="reduction_b"), x)
            return modules(x, "c", INCEPTION_C, c)

        stages = {
            "stem_start": functools.partial(run_block, self, start_stem, unit=unit),
            "stem_middle": functools.partial(
                run_block, self, Branches(STEM[0], unit, name="stem_mixed1")
            ),
            "inception_a": stage_a,
            "inception_b": stage_b,
            "inception_c": stage_c,
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        xavier = nn.initializers.xavier_uniform()
        return classify(self, outputs[-1], train=train, kernel_init=xavier, dropout=self.dropout)


VARIANTS = {
    "inception_v4": make_variant(
        InceptionV4,
        42_679_816,
        12_253_974_624,
        63_168,
        num_classes=1000,
        input_shape=(299, 299, 3),
        paper="Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual "
        "connections on learning",
        year=2016,
    ),
}

DEVIATIONS = (
    Deviation(
        "inception_v4",
        "Nothing is said of BatchNorm's scale.",
        "TF-slim's BatchNorm has none; timm has one, set to 1 where TensorFlow's weights are read.",
        "There is a scale, as in timm; norm_scale=False leaves it out (42,648,232 parameters).",
    ),
    Deviation(
        "inception_v4, inception_resnet*",
        "The figures do not say what average pooling counts at the border.",
        "TF-slim, Keras and timm leave the border out of the average; torchvision's and timm's "
        "Inception-v3 count its zeros.",
        "The border is left out.",
    ),
    Deviation(
        "inception_v4, inception_resnet*",
        "Dropout keeps 0.8 of the pooled features.",
        "TF-slim keeps 0.8; timm and Keras have no dropout unless asked.",
        "dropout=0.2 by default.",
    ),
)
