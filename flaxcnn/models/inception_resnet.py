"""Inception-ResNet-v1 and -v2: Inception modules whose sum is scaled and added to their input.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the impact of residual
connections on learning, AAAI 2017 (arXiv:1602.07261), figures 10 to 20 and Table 1; and the larger
network that its authors released as Inception-ResNet-v2 (TF-slim). Trained by RMSProp with decay
0.9 and epsilon 1.0, learning rate 0.045 times 0.94 every two epochs.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, DropPath, max_pool
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._residual import drop_rate
from flaxcnn.models._variant import make_variant
from flaxcnn.models.inception_v4 import STEM as STEM_V4
from flaxcnn.models.inception_v4 import Branches, start_stem

Array = jax.Array


class Plan(NamedTuple):
    """The modules of a network, in the notation of `inception_v4.Branches`.

    Blocks A, B and C end in a 1x1 convolution to the channels that come in.
    """

    block_a: str
    reduction_a: str
    block_b: str
    reduction_b: str
    block_c: str


PLANS = {
    "v1": Plan(  # figures 10 to 14
        block_a="32@1 | 32@1 32@3 | 32@1 32@3 32@3",
        reduction_a="384@3/2 | 192@1 192@3 256@3/2 | max/2",
        block_b="128@1 | 128@1 128@1x7 128@7x1",
        reduction_b="256@1 384@3/2 | 256@1 256@3/2 | 256@1 256@3 256@3/2 | max/2",
        block_c="192@1 | 192@1 192@1x3 192@3x1",
    ),
    "v2": Plan(  # figures 16 to 19
        block_a="32@1 | 32@1 32@3 | 32@1 48@3 64@3",
        reduction_a="384@3/2 | 256@1 256@3 384@3/2 | max/2",
        block_b="192@1 | 128@1 160@1x7 192@7x1",
        reduction_b="256@1 384@3/2 | 256@1 288@3/2 | 256@1 288@3 320@3/2 | max/2",
        block_c="192@1 | 192@1 224@1x3 256@3x1",
    ),
}
PLANS["v2_paper"] = PLANS["v2"]
STEM_V2 = "96@1 | 48@1 64@5 | 64@1 96@3 96@3 | avg 64@1"  # the end of the released stem


class ResidualBlock(nn.Module):
    """Branches, a 1x1 convolution with bias and without BatchNorm, its sum with the input.

    `scale` multiplies the convolution, `drop` is applied to it, `activate` rectifies the sum.
    """

    layout: str
    scale: float
    activate: bool
    unit: Any
    conv: Any
    drop: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the same shape."""
        y = Branches(self.layout, self.unit, name="branches")(x)
        y = self.conv(x.shape[-1], 1, use_bias=True, name="expand")(y)
        x = x + self.drop(y * self.scale)
        return nn.relu(x) if self.activate else x


class InceptionResNet(Network):
    """Inception-ResNet: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      plan: "v1", "v2_paper" (the figures) or "v2" (as released, with deeper stages).
      depths: residual blocks of each kind, A, B and C.
      scales: what residuals of each kind are multiplied by.
      dropout: probability to drop a pooled feature (the paper keeps 0.8).
      drop_path: probability to drop the last block's residual; those before it in proportion.
      norm_scale: whether BatchNorm has a scale; the weights of TensorFlow and Keras have none.
    """

    plan: Literal["v1", "v2", "v2_paper"]
    depths: tuple[int, int, int] = (5, 10, 5)
    scales: tuple[float, float, float] = (0.17, 0.1, 0.2)
    dropout: float = 0.2
    drop_path: float = 0.0
    norm_scale: bool = True

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 75, self)
        plan = PLANS[self.plan]
        kernel_init = nn.initializers.xavier_uniform()
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
        norm = make_norm(self, train, epsilon=1e-3, use_scale=self.norm_scale)
        unit = functools.partial(ConvUnit, conv=conv, norm=norm)

        def block(x: Array, kind: int, i: int, layout: str) -> Array:
            name = f"block_{'abc'[kind]}{i + 1}"
            rate = drop_rate(self.drop_path, self.depths, kind, i)
            drop = DropPath(rate, self.axis_name, name=f"{name}_drop")
            last = self.plan == "v2" and kind == 2 and i == self.depths[2] - 1
            return ResidualBlock(
                layout,
                scale=1.0 if last else self.scales[kind],
                activate=not last,
                unit=unit,
                conv=conv,
                drop=functools.partial(drop, train=train),
                name=name,
            )(x)

        def blocks(x: Array, kind: int, layout: str) -> Array:
            for i in range(self.depths[kind]):
                x = run_block(self, block, x, kind=kind, i=i, layout=layout)
            return x

        def stem_middle(x: Array) -> Array:
            if self.plan == "v2_paper":
                return Branches(STEM_V4[0], unit, name="stem_mixed1")(x)
            x = max_pool(x, (3, 3), (2, 2))
            x = unit(80, 1, name="stem_conv4")(x)
            return unit(192, 3, name="stem_conv5")(x)

        def stage_a(x: Array) -> Array:
            return blocks(self._end_stem(x, unit), 0, plan.block_a)

        def stage_b(x: Array) -> Array:
            x = run_block(self, Branches(plan.reduction_a, unit, name="reduction_a"), x)
            return blocks(x, 1, plan.block_b)

        def stage_c(x: Array) -> Array:
            x = run_block(self, Branches(plan.reduction_b, unit, name="reduction_b"), x)
            x = blocks(x, 2, plan.block_c)
            return unit(1536, 1, name="head_conv")(x) if self.plan == "v2" else x

        stages = {
            "stem_start": functools.partial(run_block, self, start_stem, unit=unit),
            "stem_middle": functools.partial(run_block, self, stem_middle),
            "blocks_a": stage_a,
            "blocks_b": stage_b,
            "blocks_c": stage_c,
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(
            self, outputs[-1], train=train, kernel_init=kernel_init, dropout=self.dropout
        )

    def _end_stem(self, x: Array, unit: Any) -> Array:
        """The stem's last step, to the maps of blocks A."""
        if self.plan == "v1":  # figure 14
            return unit(256, 3, 2, name="stem_conv6")(x)
        if self.plan == "v2_paper":  # figure 3
            x = run_block(self, Branches(STEM_V4[1], unit, name="stem_mixed2"), x)
            return run_block(self, Branches(STEM_V4[2], unit, name="stem_mixed3"), x)
        x = max_pool(x, (3, 3), (2, 2))
        return run_block(self, Branches(STEM_V2, unit, name="stem_mixed"), x)


_variant = functools.partial(
    make_variant,
    InceptionResNet,
    num_classes=1000,
    input_shape=(299, 299, 3),
    paper="Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual connections "
    "on learning",
    year=2016,
)

VARIANTS = {
    "inception_resnet_v1": _variant(22_756_328, 6_206_361_696, 27_040, plan="v1"),
    "inception_resnet_v2": _variant(
        55_843_464, 13_155_794_016, 60_544, plan="v2", depths=(10, 20, 10)
    ),
    "inception_resnet_v2_paper": _variant(32_433_928, 9_257_953_632, 32_864, plan="v2_paper"),
}

DEVIATIONS = (
    Deviation(
        "inception_resnet_v2",
        "The stem of Inception-v4, 5 + 10 + 5 blocks, every block rectified.",
        "TF-slim (the authors' release), Keras and timm have a stem like Inception-v3's and one "
        "more module, 10 + 20 + 10 blocks, the last neither scaled nor rectified, and a 1x1 "
        "convolution to 1536 channels after it.",
        "`inception_resnet_v2` is the release, whose weights exist; `inception_resnet_v2_paper` "
        "is the figures.",
    ),
    Deviation(
        "inception_resnet_v2_paper",
        "Figures 17 and 19 give 1154 and 2048 channels to the last convolutions of blocks B and C.",
        "None: no port follows the figures.",
        "1152 and 2144, what the reductions before them put out, or the sums would not exist.",
    ),
    Deviation(
        "inception_resnet_v1",
        "5 + 10 + 5 blocks; no code or weights were released.",
        "facenet has 5 + 10 + 6 blocks and the last neither scaled nor rectified, for faces.",
        "The figures; depths=(5, 10, 6) gives facenet's count.",
    ),
    Deviation(
        "inception_resnet*",
        "Residuals are scaled by 0.1 to 0.3.",
        "TF-slim, Keras and timm: 0.17, 0.1 and 0.2 in blocks A, B and C.",
        "0.17, 0.1 and 0.2 in all three networks, as the argument `scales`.",
    ),
    Deviation(
        "inception_resnet*",
        "Nothing is said of BatchNorm's scale.",
        "TF-slim's and Keras' BatchNorm have none; timm has one, set to 1 where TensorFlow's "
        "weights are read.",
        "There is a scale, as in timm; norm_scale=False leaves it out, for weights of Keras.",
    ),
)
