"""Fully convolutional heads on any network of the zoo.

`SkipFCN` is the form of Long, Shelhamer, Darrell, CVPR 2015 (arXiv:1411.4038), scores of several
strides added from coarse to fine; `DilatedFCN` that of torchvision's `fcn_resnet50`, one head on
maps that stay large by dilation.
"""

import functools

import jax
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, Dropout
from flaxcnn.models._backbone import BackboneNetwork, by_stride
from flaxcnn.models._dense import Upsample, crop
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._network import Outputs, make_norm
from flaxcnn.models._residual import he_normal
from flaxcnn.models._variant import make_variant

Array = jax.Array


class FCNBackbone(BackboneNetwork, kw_only=True):
    """Attributes of both: what is below the head.

    Attributes:
      output_stride: 8 or 16 to keep its maps large, where it can (ResNets, MobileNets).
    """

    output_stride: int = 32

    def run_stages(self, images: Array, *, train: bool) -> tuple[Array, ...]:
        """The maps of all the backbone's stages."""
        dilation = {} if self.output_stride == 32 else {"output_stride": self.output_stride}
        return self.run_backbone(images, train=train, **dilation)


class SkipFCN(FCNBackbone):
    """FCN-32s, 16s or 8s: [N, H, W, C] -> float32 logits for each pixel, [N, H, W, num_classes].

    The last maps of each stride from 32 (or `output_stride`) down to `stride` are scored by 1x1
    convolutions that start from zero.

    Attributes:
      stride: of the finest maps that are scored.
      learned: upsampling that is learned; else it stays bilinear.
      dropout: of the coarsest maps.
    """

    stride: int = 8
    learned: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 logits [N, H, W, num_classes]."""
        maps = self.run_stages(images, train=train)
        strides = by_stride(images, maps)
        if self.stride not in strides:
            known = ", ".join(map(str, strides))
            raise UserError(f"stride is {self.stride}: {self.backbone} has maps of stride {known}")
        score = functools.partial(
            Conv, self.num_classes, 1, dtype=self.dtype, kernel_init=nn.initializers.zeros
        )
        x, before = None, 0
        for stride in sorted((s for s in strides if s >= self.stride), reverse=True):
            if x is None:
                drop = Dropout(self.dropout, self.axis_name, name="dropout")
                x = score(name=f"score{stride}")(drop(strides[stride], train=train))
            else:
                finer = score(name=f"score{stride}")(strides[stride])
                x = finer + self._upsample(x, before // stride, finer, f"upsample{stride}")
            before = stride
        assert x is not None
        return self._upsample(x, before, images, "upsample").astype("float32")

    def _upsample(self, x: Array, factor: int, like: Array, name: str) -> Array:
        return crop(Upsample(factor, self.learned, name=name)(x), factor // 2, like)


class DilatedFCN(FCNBackbone):
    """torchvision's FCN: [N, H, W, C] -> float32 logits for each pixel, [N, H, W, num_classes].

    A 3x3 convolution to a quarter of the channels, BatchNorm, dropout and a 1x1 on the last maps,
    resized to the image's size.

    Attributes:
      auxiliary: whether a second head on the maps before has a loss of its own in training, which
        then returns `Outputs`.
      dropout: of both heads.
    """

    auxiliary: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array | Outputs:
        """Maps images [N, H, W, C] to float32 logits [N, H, W, num_classes], or to `Outputs`."""
        *_, before, last = self.run_stages(images, train=train)
        logits = self._score(last, images, "head", train)
        if not self.auxiliary or not (train or self.is_initializing()):
            return logits
        auxiliary = self._score(before, images, "auxiliary", train)
        return Outputs(logits, (auxiliary,)) if train else logits

    def _score(self, x: Array, images: Array, name: str, train: bool) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train)
        x = conv(x.shape[-1] // 4, 3, padding=1, use_bias=False, name=f"{name}_conv")(x)
        x = nn.relu(norm(name=f"{name}_bn")(x))
        x = Dropout(self.dropout, self.axis_name, name=f"{name}_dropout")(x, train=train)
        x = conv(self.num_classes, 1, name=f"{name}_classifier")(x).astype("float32")
        shape = (x.shape[0], *images.shape[1:3], x.shape[-1])
        return jax.image.resize(
            x, shape, "bilinear", antialias=False, precision=jax.lax.Precision.HIGHEST
        )


_skip = functools.partial(
    make_variant,
    SkipFCN,
    num_classes=21,
    backbone="mobilenet_v2",
    input_shape=(224, 224, 3),
    paper="Long et al., Fully convolutional networks for semantic segmentation",
    year=2015,
    task="segmentation",
)
_dilated = functools.partial(
    make_variant,
    DilatedFCN,
    num_classes=21,
    output_stride=8,
    input_shape=(520, 520, 3),
    paper="Long et al., Fully convolutional networks for semantic segmentation; torchvision's form",
    year=2015,
    task="segmentation",
)

VARIANTS = {
    "fcn32s": _skip(1_818_453, 279_753_152, 31_552, stride=32),
    "fcn16s": _skip(1_820_490, 280_148_288, 31_552, stride=16),
    "fcn8s": _skip(1_821_183, 280_675_136, 31_552, stride=8),
    "fcn_resnet50": _dilated(32_957_013, 142_725_772_800, 54_144, backbone="resnet50"),
    "fcn_resnet101": _dilated(51_949_141, 222_746_867_200, 106_368, backbone="resnet101"),
}

DEVIATIONS = (
    Deviation(
        "fcn32s, fcn16s, fcn8s",
        "VGG-16 with a border of 100 pixels, and crops that it asks for.",
        "No public form on other networks.",
        "Any network with stages, without a border: maps double and are cut to the finer ones.",
    ),
)
