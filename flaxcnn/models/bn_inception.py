"""BN-Inception, or Inception-v2, and its form with squeeze-and-excitation.

Ioffe, Szegedy: Batch normalization, ICML 2015 (arXiv:1502.03167), appendix and Figure 5: GoogLeNet
with two 3x3 convolutions for 5x5, averages in most modules and no local response normalisation.
SE-BN-Inception: Hu, Shen, Albanie, Sun, Wu: Squeeze-and-excitation networks, CVPR 2018
(arXiv:1709.01507), section 3.3 and Table 2. Borders are those of the latter's Caffe file.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import (
    Conv,
    SqueezeExcite,
    avg_pool,
    max_pool,
)
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array
Pool = Literal["avg", "max"]

# Figure 5: features of the 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, which pooling, and
# features of its projection. Modules without 1x1 and without a projection have stride 2.
MODULES: dict[str, tuple[int, int, int, int, int, Pool, int]] = {
    "inception_3a": (64, 64, 64, 64, 96, "avg", 32),
    "inception_3b": (64, 64, 96, 64, 96, "avg", 64),
    "inception_3c": (0, 128, 160, 64, 96, "max", 0),
    "inception_4a": (224, 64, 96, 96, 128, "avg", 128),
    "inception_4b": (192, 96, 128, 96, 128, "avg", 128),
    "inception_4c": (160, 128, 160, 128, 160, "avg", 128),
    "inception_4d": (96, 128, 192, 160, 192, "avg", 128),
    "inception_4e": (0, 128, 192, 192, 256, "max", 0),
    "inception_5a": (352, 192, 320, 160, 224, "avg", 128),
    "inception_5b": (352, 192, 320, 192, 224, "max", 128),
}
STAGES = {
    "stage3": ("inception_3a", "inception_3b"),
    "stage4": ("inception_3c", "inception_4a", "inception_4b", "inception_4c", "inception_4d"),
    "stage5": ("inception_4e", "inception_5a", "inception_5b"),
}


class DoubleInception(nn.Module):
    """1x1, 3x3, two 3x3 convolutions and pooling side by side (Figure 5 of the paper).

    `features` and `pool` are a row of the table above, `unit` is ConvUnit with `conv` and `norm`
    chosen; `se_reduction` is that of squeeze-and-excitation on the result, 0 for none.
    """

    features: tuple[int, ...]
    pool: Pool
    unit: Any
    se_reduction: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the branches' channels; H and W are halved without a 1x1."""
        direct, reduce3, features3, reduce_double, double, project = self.features
        unit, stride = self.unit, 1 if direct else 2
        y3 = unit(reduce3, 1, name="reduce3x3")(x)
        y5 = unit(reduce_double, 1, name="reduce_double3x3")(x)
        y5 = unit(double, 3, padding=1, name="double3x3_1")(y5)
        branches = [
            unit(features3, 3, stride, 1, name="conv3x3")(y3),
            unit(double, 3, stride, 1, name="double3x3_2")(y5),
        ]
        if direct:
            branches = [unit(direct, 1, name="conv1x1")(x), *branches, self._project(x, project)]
        else:
            # Without a border, as in the paper; but maps of odd sizes need one, for as many
            # windows as the convolutions have.
            border = [(size % 2, size % 2) for size in x.shape[1:3]]
            branches.append(max_pool(x, (3, 3), (2, 2), border, ceil_mode=True))
        y = jnp.concatenate(branches, -1)
        return SqueezeExcite(self.se_reduction, y.dtype, name="se")(y) if self.se_reduction else y

    def _project(self, x: Array, features: int) -> Array:
        pool = max_pool if self.pool == "max" else avg_pool  # averages count the border
        return self.unit(features, 1, name="pool_project")(pool(x, (3, 3), (1, 1), 1))


class BNInception(Network):
    """BN-Inception: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      se_reduction: of squeeze-and-excitation on the result of each module, 0 for none.
      width: a factor of all features but the classifier's.
      dropout: before the classifier; the paper has none.
    """

    se_reduction: int = 0
    width: float = 1.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 7, self)
        kernel_init = nn.initializers.lecun_uniform()  # "xavier" in Caffe
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
        norm = make_norm(self, train)
        unit = functools.partial(ConvUnit, conv=conv, norm=norm, width=self.width)

        def stage1(x: Array) -> Array:
            return unit(64, 7, 2, 3, name="conv1")(x)

        def stage2(x: Array) -> Array:
            x = max_pool(x, (3, 3), (2, 2), ceil_mode=True)
            x = unit(64, 1, name="conv2_reduce")(x)
            return unit(192, 3, padding=1, name="conv2")(x)

        def stage(x: Array, name: str) -> Array:
            if name == "stage3":
                x = max_pool(x, (3, 3), (2, 2), ceil_mode=True)
            for module in STAGES[name]:
                *features, pool, project = MODULES[module]
                block = DoubleInception(
                    (*features, project), pool, unit, self.se_reduction, name=module
                )
                x = run_block(self, block, x)
            return x

        stages = {
            "stage1": functools.partial(run_block, self, stage1),
            "stage2": functools.partial(run_block, self, stage2),
        } | {name: functools.partial(stage, name=name) for name in STAGES}
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(
            self, outputs[-1], train=train, kernel_init=kernel_init, dropout=self.dropout
        )


_variant = functools.partial(
    make_variant, BNInception, statistics=20_032, num_classes=1000, input_shape=(224, 224, 3)
)

VARIANTS = {
    "bn_inception": _variant(
        11_285_224, 2_032_600_064, paper="Ioffe and Szegedy, Batch normalization", year=2015
    ),
    "se_bn_inception": _variant(
        11_931_622,
        2_033_239_424,
        se_reduction=16,
        paper="Hu et al., Squeeze-and-excitation networks",
        year=2017,
    ),
}

DEVIATIONS = (
    Deviation(
        "bn_inception",
        "A normalised convolution needs no bias (section 3.2); the first convolution of Figure 5 "
        "is a separable 7x7; 4c and 4d project to 96 channels.",
        "TF-slim's inception_v2 is that; Hu et al.'s Caffe file has a plain first convolution and "
        "128 channels in 4c and 4d; Cadene's port has biases too (11,295,240 parameters).",
        "`bn_inception` and `se_bn_inception` have Hu et al.'s widths and no biases, so that they "
        "differ by the gates alone and the public weights fit.",
    ),
)
