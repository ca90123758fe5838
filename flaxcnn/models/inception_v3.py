"""Inception-v3: modules of factorised convolutions, with BatchNorm.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception architecture for computer vision,
CVPR 2016 (arXiv:1512.00567), figures 5 to 7 and 10, as its authors' TF-slim code has it. Trained by
RMSProp with decay 0.9 and epsilon 1.0, gradients clipped at 2.0, label smoothing 0.1; the loss of
the auxiliary classifier counts 0.4 there.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, avg_pool, global_avg_pool, max_pool
from flaxcnn.models._conv_unit import ConvUnit
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images, normalize_to_one
from flaxcnn.models._network import Network, Outputs, classify, make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array


class Layer(NamedTuple):
    """A ConvUnit: with stride 1 its maps keep their size, with stride 2 it has no border."""

    name: str
    features: int
    kernel: int | tuple[int, int]
    stride: int = 1


Step = Layer | tuple[Layer, ...] | Literal["avg", "max"]  # layers in a tuple see the same maps
Branch = tuple[Step, ...]


def _mixed5(project: int) -> tuple[Branch, ...]:  # Figure 5
    return (
        (Layer("conv1x1", 64, 1),),
        (Layer("conv5x5_1", 48, 1), Layer("conv5x5_2", 64, 5)),
        (
            Layer("conv3x3dbl_1", 64, 1),
            Layer("conv3x3dbl_2", 96, 3),
            Layer("conv3x3dbl_3", 96, 3),
        ),
        ("avg", Layer("pool_project", project, 1)),
    )


def _mixed6(inner: int) -> tuple[Branch, ...]:  # Figure 6
    return (
        (Layer("conv1x1", 192, 1),),
        (
            Layer("conv7x7_1", inner, 1),
            Layer("conv7x7_2", inner, (1, 7)),
            Layer("conv7x7_3", 192, (7, 1)),
        ),
        (
            Layer("conv7x7dbl_1", inner, 1),
            Layer("conv7x7dbl_2", inner, (7, 1)),
            Layer("conv7x7dbl_3", inner, (1, 7)),
            Layer("conv7x7dbl_4", inner, (7, 1)),
            Layer("conv7x7dbl_5", 192, (1, 7)),
        ),
        ("avg", Layer("pool_project", 192, 1)),
    )


REDUCTION6: tuple[Branch, ...] = (  # Figure 10
    (Layer("conv3x3", 384, 3, 2),),
    (
        Layer("conv3x3dbl_1", 64, 1),
        Layer("conv3x3dbl_2", 96, 3),
        Layer("conv3x3dbl_3", 96, 3, 2),
    ),
    ("max",),
)
REDUCTION7: tuple[Branch, ...] = (
    (Layer("conv3x3_1", 192, 1), Layer("conv3x3_2", 320, 3, 2)),
    (
        Layer("conv7x7x3_1", 192, 1),
        Layer("conv7x7x3_2", 192, (1, 7)),
        Layer("conv7x7x3_3", 192, (7, 1)),
        Layer("conv7x7x3_4", 192, 3, 2),
    ),
    ("max",),
)
MIXED7: tuple[Branch, ...] = (  # Figure 7
    (Layer("conv1x1", 320, 1),),
    (
        Layer("conv3x3_1", 384, 1),
        (Layer("conv3x3_2a", 384, (1, 3)), Layer("conv3x3_2b", 384, (3, 1))),
    ),
    (
        Layer("conv3x3dbl_1", 448, 1),
        Layer("conv3x3dbl_2", 384, 3),
        (Layer("conv3x3dbl_3a", 384, (1, 3)), Layer("conv3x3dbl_3b", 384, (3, 1))),
    ),
    ("avg", Layer("pool_project", 192, 1)),
)
MODULES = {
    "mixed_5b": _mixed5(32),
    "mixed_5c": _mixed5(64),
    "mixed_5d": _mixed5(64),
    "mixed_6a": REDUCTION6,
    "mixed_6b": _mixed6(128),
    "mixed_6c": _mixed6(160),
    "mixed_6d": _mixed6(160),
    "mixed_6e": _mixed6(192),
    "mixed_7a": REDUCTION7,
    "mixed_7b": MIXED7,
    "mixed_7c": MIXED7,
}


class Mixed(nn.Module):
    """Branches side by side; `unit` is ConvUnit with `conv` and `norm` chosen.

    `count_border` is whether averages over windows that stick out count the zeros there.
    """

    branches: tuple[Branch, ...]
    unit: Any
    count_border: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the channels of all branches, in order."""
        return jnp.concatenate([self._run(branch, x) for branch in self.branches], -1)

    def _run(self, branch: Branch, x: Array) -> Array:
        for step in branch:
            if step == "max":
                x = max_pool(x, (3, 3), (2, 2))
            elif step == "avg":
                x = avg_pool(x, (3, 3), padding=1, count_include_pad=self.count_border)
            elif isinstance(step, Layer):
                x = self._convolve(step, x)
            else:
                x = jnp.concatenate([self._convolve(layer, x) for layer in step], -1)  # pyright: ignore
        return x

    def _convolve(self, layer: Layer, x: Array) -> Array:
        size = (layer.kernel,) * 2 if isinstance(layer.kernel, int) else layer.kernel
        border = [(side // 2, side // 2) for side in size] if layer.stride == 1 else 0
        return self.unit(layer.features, size, layer.stride, border, name=layer.name)(x)


class InceptionV3(Network):
    """Inception-v3: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      auxiliary: to have an auxiliary classifier on 6e, whose logits are in the Outputs returned in
        training. It takes images of at least 299x299.
      count_border: averages within the modules count the zeros around the maps.
      norm_scale: BatchNorm has a scale.
      norm_momentum: share of BatchNorm's averages that is kept.
      width: a factor of all features but the classifiers'.
      dropout: before the classifier.
      transform_input: images are normalised with ImageNet's mean and deviation, and the network
        changes them to -1..1, for which torchvision's pretrained weights are.
    """

    auxiliary: bool = False
    count_border: bool = True
    norm_scale: bool = True
    norm_momentum: float = 0.9
    width: float = 1.0
    dropout: float = 0.2
    transform_input: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images to logits, to Outputs in training with `auxiliary`, or to a tuple of maps."""
        with_head = self.auxiliary and self.num_classes > 0 and not self.features_only
        runs_head = with_head and (train or self.is_initializing())
        check_images(images, 299 if runs_head else 75, self)
        if self.transform_input:
            images = normalize_to_one(images)
        kernel_init = nn.initializers.truncated_normal(0.1)
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
        norm = make_norm(
            self, train, momentum=self.norm_momentum, epsilon=1e-3, use_scale=self.norm_scale
        )
        unit = functools.partial(ConvUnit, conv=conv, norm=norm, width=self.width)
        auxiliary = []

        def run_head(x: Array) -> None:
            x = avg_pool(x, (5, 5), (3, 3))
            x = unit(128, 1, name="auxiliary_conv1")(x)
            last_conv = functools.partial(conv, kernel_init=nn.initializers.truncated_normal(0.01))
            x = global_avg_pool(unit(768, 5, conv=last_conv, name="auxiliary_conv2")(x))
            dense_init = nn.initializers.truncated_normal(0.001)
            dense = nn.Dense(self.num_classes, kernel_init=dense_init, name="auxiliary_classifier")
            auxiliary.append(dense(x).astype(jnp.float32))

        def stage1(x: Array) -> Array:
            x = unit(32, 3, 2, name="conv1a")(x)
            x = unit(32, 3, name="conv2a")(x)
            return unit(64, 3, padding=1, name="conv2b")(x)

        def stage2(x: Array) -> Array:
            x = unit(80, 1, name="conv3b")(max_pool(x, (3, 3), (2, 2)))
            return unit(192, 3, name="conv4a")(x)

        def stage(x: Array, name: str) -> Array:
            if name == "stage3":
                x = max_pool(x, (3, 3), (2, 2))
            for module in (m for m in MODULES if m.startswith(PREFIXES[name])):
                mixed = Mixed(MODULES[module], unit, self.count_border, name=module)
                x = run_block(self, mixed, x)
            if name == "stage4" and runs_head:
                run_head(x)
            return x

        stages = {
            "stage1": functools.partial(run_block, self, stage1),
            "stage2": functools.partial(run_block, self, stage2),
        } | {name: functools.partial(stage, name=name) for name in PREFIXES}
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = classify(self, outputs[-1], train=train, kernel_init=kernel_init, dropout=self.dropout)
        return Outputs(x, tuple(auxiliary)) if with_head and train else x


PREFIXES = {"stage3": "mixed_5", "stage4": "mixed_6", "stage5": "mixed_7"}


_variant = functools.partial(
    make_variant,
    InceptionV3,
    macs=5_713_216_096,
    num_classes=1000,
    input_shape=(299, 299, 3),
    paper="Szegedy et al., Rethinking the Inception architecture for computer vision",
    year=2015,
)

VARIANTS = {
    "inception_v3": _variant(23_834_568, statistics=34_432, dropout=0.5),
    "inception_v3_aux": _variant(27_161_264, statistics=36_224, auxiliary=True, dropout=0.5),
    "inception_v3_keras": _variant(
        23_817_352,
        statistics=34_432,
        count_border=False,
        norm_scale=False,
        norm_momentum=0.99,
        dropout=0.0,
    ),
}

DEVIATIONS = (
    Deviation(
        "inception_v3, inception_v3_aux",
        "BatchNorm has no scale, and averages within the modules leave out the border (authors' "
        "TF-slim code).",
        "torchvision and timm have scales and count the border as zeros; Keras is as the paper.",
        "The plain name is torchvision's, so that its weights fit; `inception_v3_keras` has no "
        "scales and leaves out the border. TensorFlow's weights in torchvision's or timm's form "
        "carry the small difference at borders.",
    ),
    Deviation(
        "inception_v3, inception_v3_aux",
        "Dropout 0.2 (authors' TF-slim code).",
        "torchvision has 0.5, Keras and timm none.",
        "`dropout` is 0.5 in torchvision's networks, 0 in Keras', 0.2 unless given.",
    ),
    Deviation(
        "inception_v3, inception_v3_aux",
        "Images in -1..1 (authors' TF-slim code).",
        "Keras and timm take them so, timm's `gluon_in1k` normalised with ImageNet's mean and "
        "deviation. torchvision's network takes images normalised in that way and changes them "
        "(`transform_input=True`, set with pretrained weights only).",
        "`transform_input` does it, off unless given: needed with torchvision's pretrained weights "
        "where images are normalised as for its other networks.",
    ),
)
