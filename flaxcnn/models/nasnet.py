"""NASNet-A: two cells found by search on CIFAR-10, stacked for ImageNet.

Zoph, Vasudevan, Shlens, Le: Learning transferable architectures for scalable image recognition,
CVPR 2018 (arXiv:1707.07012), Table 2, and what the authors' code (TF-slim) adds: the stem's cells
and the auxiliary classifier. Trained by RMSProp with label smoothing 0.1 and weight decay 4e-5;
the auxiliary loss counts 0.4.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, DepthwiseConv, DropPath
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._nasnet_cell import (
    AuxiliaryHead,
    Border,
    Cell,
    Previous,
    SeparablePair,
    depthwise_he_normal,
    he_normal,
)
from flaxcnn.models._network import Network, Outputs, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array


class NASNet(Network):
    """NASNet-A (N @ P): [N, H, W, C] -> float32 logits [N, num_classes].

    The output of a stage is that of its last cell, before the ReLU with which cells begin; the last
    one has gone through it.

    Attributes:
      cells: normal cells in a stage (N in the paper).
      features: channels of the last map (P in the paper), a multiple of 96.
      stem_features: channels of the stem's convolution.
      skip_reduction: whether the cell after a reduction sees what the reducing cell saw as the
        older of its two inputs (Large), or the newer (Mobile).
      border: what 3x3 pools with stride 2 see beyond the map: "none" as in the authors' code,
        "zeros" as in Keras, "zeros_in_averages" but not in maxima as in timm.
      dropout: before the classifier.
      drop_path: probability to drop an operation of the last cell; those before it in proportion.
        The paper's 0.3 for Large rises in the course of training from 0, which is not done here.
      auxiliary: a second classifier in training (Outputs), before the last reduction. Its
        parameters are for images of one size.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    cells: int
    features: int
    stem_features: int
    skip_reduction: bool = False
    border: Border = "none"
    dropout: float = 0.5
    drop_path: float = 0.0
    auxiliary: bool = False
    momentum: float = 0.9997

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        auxiliary = self.auxiliary and self.num_classes > 0 and not self.features_only
        check_images(images, 67 if auxiliary else 3, self)
        if self.features % 96:
            raise UserError(f"NASNet: features is {self.features}, and must be a multiple of 96")
        chosen = {"use_bias": False, "dtype": self.dtype}
        conv = functools.partial(Conv, kernel_init=he_normal, **chosen)
        depthwise = functools.partial(DepthwiseConv, kernel_init=depthwise_he_normal, **chosen)
        norm = make_norm(self, train, momentum=self.momentum, epsilon=1e-3)
        pair = functools.partial(SeparablePair, conv=conv, depthwise=depthwise, norm=norm)
        filters, done = self.features // 24, 0
        older: Array | None = None  # what the next cell sees besides its input
        relation: Previous = "same"

        def cell(x: Array, features: int, name: str, reduces: bool, keep: bool = False) -> Array:
            nonlocal older, relation, done
            done += 1
            rate = self.drop_path * done / (3 * self.cells + 4)

            def drop(name: str) -> Any:
                return functools.partial(DropPath(rate, self.axis_name, name=name), train=train)

            module = Cell(
                features, reduces, relation, self.border, conv, norm, pair, drop, name=name
            )
            y = run_block(self, module, x, x if older is None else older)
            older = older if keep else x
            relation = "reduce" if reduces else "project"
            return y

        def stem(x: Array) -> Array:
            x = conv(self.stem_features, 3, 2, padding="VALID", name="stem_conv")(x)
            return norm(name="stem_bn")(x)

        def stage(x: Array, index: int) -> Array:
            features = filters * 2**index // 4
            in_stem = index < 3
            x = cell(
                x,
                features // 2 if in_stem else features,
                f"stage{index}_reduce",
                reduces=True,
                keep=self.skip_reduction and not in_stem,
            )
            for i in range(self.cells if index > 1 else 0):
                x = cell(x, features, f"stage{index}_cell{i + 1}", reduces=False)
            return nn.relu(x) if index == 4 else x

        stages = {"stem": functools.partial(run_block, self, stem)} | {
            f"stage{i}": functools.partial(stage, index=i) for i in range(1, 5)
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        logits = classify(
            self, outputs[-1], train=train, kernel_init=he_normal, dropout=self.dropout
        )
        if not (auxiliary and (train or self.is_initializing())):
            return logits
        head = AuxiliaryHead(self.num_classes, conv, norm, name="auxiliary")
        other = head(outputs[-2]).astype(jnp.float32)
        return Outputs(logits, (other,)) if train else logits


_variant = functools.partial(
    make_variant,
    NASNet,
    num_classes=1000,
    paper="Zoph et al., Learning transferable architectures for scalable image recognition",
    year=2017,
)
_mobile = functools.partial(
    _variant,
    5_289_978,
    563_638_816,
    36_738,
    cells=4,
    features=1056,
    stem_features=32,
    input_shape=(224, 224, 3),
)
_large = functools.partial(
    _variant,
    88_753_150,
    23_783_414_658,
    196_668,
    cells=6,
    features=4032,
    stem_features=96,
    skip_reduction=True,
    input_shape=(331, 331, 3),
)

VARIANTS = {
    "nasnet_a_mobile": _mobile(border="zeros"),
    "nasnet_a_large": _large(border="zeros"),
    "nasnet_a_mobile_slim": _mobile(border="none"),
    "nasnet_a_large_slim": _large(border="none"),
    "nasnetalarge": _large(border="zeros_in_averages"),
}

ALIASES = {"nasnet_mobile": "nasnet_a_mobile", "nasnet_large": "nasnet_a_large"}

DEVIATIONS = (
    Deviation(
        "nasnet*",
        "In reducing cells 3x3 pools with stride 2 do not see the border (TF-slim, the authors' "
        "code).",
        "Keras pads with zeros, which enter the maxima and the averages; timm's averages count "
        "zeros, its maxima do not. All have the same parameters, and weights that come from "
        "TF-slim.",
        "`nasnet_a_mobile` and `nasnet_a_large` are Keras', `nasnetalarge` is timm's, "
        "`nasnet_a_*_slim` are the authors'; the argument `border` chooses.",
    ),
    Deviation(
        "nasnet*",
        "Scheduled drop-path (0.3 for Large, rising with depth and time), dropout 0.5, an "
        "auxiliary classifier.",
        "Keras and timm have neither drop-path nor an auxiliary classifier, and no dropout.",
        "Dropout 0.5; `drop_path` (rising with depth alone) and `auxiliary` are arguments, off "
        "unless given.",
    ),
    Deviation(
        "nasnet_a_mobile",
        "564 million multiply-adds.",
        "Keras has 563.6 million; Cadene's port pads stem and reductions in another way: 568.2.",
        "Keras'.",
    ),
)
