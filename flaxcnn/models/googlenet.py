"""GoogLeNet, or Inception-v1: modules of parallel convolutions.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going deeper with
convolutions, CVPR 2015 (arXiv:1409.4842), Table 1. Trained by SGD with momentum 0.9; the losses
of the two auxiliary classifiers count 0.3. What the paper leaves open (initialisation, borders) is
as in the Caffe model `bvlc_googlenet`, and in the form with BatchNorm as in torchvision.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import (
    Conv,
    Dropout,
    adaptive_avg_pool,
    avg_pool,
    local_response_norm,
    max_pool,
)
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images, flatten, normalize_to_one
from flaxcnn.models._network import Network, Outputs, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array

# Table 1: features of the 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection.
MODULES = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
HEADS = {"inception_4a": "auxiliary1", "inception_4d": "auxiliary2"}  # a head and where it stands


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a maximum side by side (Figure 2b).

    `features` are a row of Table 1, `unit` is ConvUnit with `conv` and `norm` chosen;
    `large_kernel` is the size of what the paper has as 5x5.
    """

    features: tuple[int, ...]
    large_kernel: int
    unit: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, sum of the branches]."""
        direct, reduce3, features3, reduce5, features5, project = self.features
        unit, large = self.unit, self.large_kernel
        y3 = unit(reduce3, 1, name="reduce3x3")(x)
        y5 = unit(reduce5, 1, name="reduce5x5")(x)
        branches = [
            unit(direct, 1, name="conv1x1")(x),
            unit(features3, 3, padding=1, name="conv3x3")(y3),
            unit(features5, large, padding=large // 2, name="conv5x5")(y5),
            unit(project, 1, name="pool_project")(max_pool(x, (3, 3), (1, 1), 1)),
        ]
        return jnp.concatenate(branches, -1)


class AuxiliaryClassifier(nn.Module):
    """Pooling, 1x1 convolution, a dense layer and a classifier on a map within the network.

    The average is over windows of 5x5, 3 apart, as in the paper; if `adaptive` over a grid of 4x4,
    whatever the size of the map. `drop` is Dropout with its train mode chosen.
    """

    num_classes: int
    adaptive: bool
    unit: Any
    drop: Any
    kernel_init: Any
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to float32 logits [N, num_classes]."""
        if self.adaptive:
            x = adaptive_avg_pool(x, (4, 4))
        else:
            x = avg_pool(x, (5, 5), (3, 3), ceil_mode=True)
        x = self.unit(128, 1, name="conv")(x)
        x = flatten(x)
        dense = functools.partial(nn.Dense, kernel_init=self.kernel_init)
        x = self.drop(nn.relu(dense(1024, dtype=self.dtype, name="hidden")(x)))
        return dense(self.num_classes, name="classifier")(x).astype(jnp.float32)


class GoogLeNet(Network):
    """GoogLeNet: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      batch_norm: BatchNorm after every convolution, instead of biases and of local response
        normalisation.
      large_kernel: of the third branch of a module, 5 in the paper and 3 in torchvision.
      last_pool: window of the last maximum, 3 in the paper and 2 in torchvision.
      auxiliary: to have two auxiliary classifiers, on 4a and 4d, whose logits are in the Outputs
        returned in training.
      adaptive_heads: auxiliary classifiers average over a grid of 4x4, as in torchvision, and not
        over windows of 5x5, which give 4x4 for images of 224x224.
      width: a factor of all features but the classifiers'.
      dropout, auxiliary_dropout: before the classifier, and within the auxiliary ones.
      transform_input: images are normalised with ImageNet's mean and deviation, and the network
        changes them to -1..1, for which torchvision's pretrained weights are.
    """

    batch_norm: bool = False
    large_kernel: int = 5
    last_pool: int = 3
    auxiliary: bool = False
    adaptive_heads: bool = False
    width: float = 1.0
    dropout: float = 0.4
    auxiliary_dropout: float = 0.7
    transform_input: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images to logits, to Outputs in training with `auxiliary`, or to a tuple of maps."""
        with_heads = self.auxiliary and self.num_classes > 0 and not self.features_only
        runs_heads = with_heads and (train or self.is_initializing())
        check_images(images, self._smallest_side(runs_heads), self)
        if self.transform_input:
            images = normalize_to_one(images)
        kernel_init = nn.initializers.lecun_uniform()  # "xavier" in Caffe
        bias_init = nn.initializers.constant(0.2)
        norm = None
        if self.batch_norm:
            kernel_init = nn.initializers.normal(0.01)
            norm = make_norm(self, train, epsilon=1e-3)
        conv = functools.partial(
            Conv,
            use_bias=not self.batch_norm,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
        )
        unit = functools.partial(ConvUnit, conv=conv, norm=norm, width=self.width)
        auxiliary = []

        def run_head(x: Array, name: str) -> None:
            drop = Dropout(self.auxiliary_dropout, self.axis_name, name=f"{name}_dropout")
            head = AuxiliaryClassifier(
                self.num_classes,
                self.adaptive_heads,
                unit,
                functools.partial(drop, train=train),
                kernel_init,
                self.dtype,
                name=name,
            )
            auxiliary.append(head(x))

        def stem(x: Array) -> Array:
            return unit(64, 7, 2, padding=3, name="conv1")(x)

        def stage2(x: Array) -> Array:
            x = self._respond(max_pool(x, (3, 3), (2, 2), ceil_mode=True))
            x = unit(64, 1, name="conv2_reduce")(x)
            return self._respond(unit(192, 3, padding=1, name="conv2")(x))

        def stage(x: Array, index: int) -> Array:
            window = self.last_pool if index == 5 else 3
            x = max_pool(x, (window, window), (2, 2), ceil_mode=True)
            for name in (n for n in MODULES if n.startswith(f"inception_{index}")):
                x = run_block(self, Inception(MODULES[name], self.large_kernel, unit, name=name), x)
                if runs_heads and name in HEADS:
                    run_head(x, HEADS[name])
            return x

        stages = {
            "stage1": functools.partial(run_block, self, stem),
            "stage2": functools.partial(run_block, self, stage2),
        } | {f"stage{i}": functools.partial(stage, index=i) for i in (3, 4, 5)}
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = classify(self, outputs[-1], train=train, kernel_init=kernel_init, dropout=self.dropout)
        return Outputs(x, tuple(auxiliary)) if with_heads and train else x

    def _respond(self, x: Array) -> Array:
        if self.batch_norm:
            return x
        return local_response_norm(x, size=5, k=1.0, alpha=1e-4, beta=0.75, divide_alpha=True)

    def _smallest_side(self, runs_heads: bool) -> int:
        if runs_heads and not self.adaptive_heads:
            return 47  # 3x3 on 4a, where a cut window of 5x5 still begins within the map
        return 31 if self.last_pool == 3 else 15


_variant = functools.partial(
    make_variant,
    GoogLeNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Szegedy et al., Going deeper with convolutions",
    year=2014,
)
_torchvision = functools.partial(
    _variant, batch_norm=True, large_kernel=3, last_pool=2, adaptive_heads=True, dropout=0.2
)

VARIANTS = {
    "googlenet": _torchvision(6_624_904, 1_498_376_192, 14_560),
    "googlenet_bn_tv_aux": _torchvision(13_004_888, 1_498_376_192, 15_072, auxiliary=True),
    "googlenet_lrn": _variant(6_998_552, 1_582_671_872),
    "googlenet_aux": _variant(13_378_280, 1_582_671_872, auxiliary=True),
}

ALIASES = {"googlenet_bn_tv": "googlenet"}

DEVIATIONS = (
    Deviation(
        "googlenet, googlenet_bn_tv_aux",
        "Convolutions with biases, local response normalisation after the first and third, a last "
        "maximum over 3x3, auxiliary classifiers on averages of 5x5, dropout 0.4.",
        "torchvision has BatchNorm (epsilon 1e-3) and neither biases nor local response "
        "normalisation, a last maximum over 2x2, adaptive averages, dropout 0.2.",
        "`googlenet` is torchvision's, so that its weights fit; `googlenet_lrn` and "
        "`googlenet_aux`, with auxiliary classifiers, are the paper's as in Caffe.",
    ),
    Deviation(
        "googlenet, googlenet_bn_tv_aux",
        "The third branch of a module is a 5x5 convolution.",
        "torchvision and TF-slim have 3x3 there (pytorch/vision#906).",
        "`large_kernel` is 3 in `googlenet`; with 5 it has 7,005,832 parameters.",
    ),
    Deviation(
        "googlenet, googlenet_bn_tv_aux",
        "Images have their mean subtracted.",
        "torchvision's pretrained weights are for images in -1..1. Its network takes images "
        "normalised with ImageNet's mean and deviation and changes them (`transform_input=True`, "
        "set with pretrained weights only).",
        "`transform_input` does it, off unless given: needed with torchvision's pretrained weights "
        "where images are normalised as for its other networks.",
    ),
)
