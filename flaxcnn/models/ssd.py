"""SSD: boxes relative to default ones on maps of several sizes, made from VGG-16 and beyond it.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg: SSD: single shot multibox detector, ECCV 2016
(arXiv:1512.02325), section 2.1 and Figure 2. Trained by SGD with momentum 0.9 and weight decay 5e-4
in batches of 32, learning rate 1e-3, later a tenth and a hundredth.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._backbone import BackboneNetwork, choose_strides
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._variant import make_variant

Array = jax.Array

glorot_uniform = nn.initializers.glorot_uniform()


class SSD(BackboneNetwork, kw_only=True):
    """SSD: [N, H, W, C] -> float32 box offsets [N, P, 4] and class logits [N, P, 1 + num_classes].

    The P default boxes are those of all places of all maps, map after map, row by row, those of one
    place together. Class 0 is the background.

    Attributes:
      backbone: network with maps of `strides`.
      strides: of its maps that boxes are on.
      reduced: features of the layers 6 and 7 on the last of them, which are VGG-16's dense ones
        with fewer weights: a 3x3 convolution with dilation 6 and a 1x1; 0 for none.
      normalize: the first maps are divided by the length of each place's vector and multiplied by
        weights that start at 20 (Liu, Rabinovich, Berg 2015, arXiv:1506.04579).
      extras: features of the further maps; each is made by a 1x1 convolution to half of them and a
        3x3 with a stride of `extra_strides`, which has a border where that is 2.
      num_anchors: default boxes at a place of each of the maps.
    """

    backbone: str = "vgg16"
    strides: tuple[int, ...] = (8, 16)
    reduced: int = 1024
    normalize: bool = True
    extras: tuple[int, ...] = (512, 256, 256, 256)
    extra_strides: tuple[int, ...] = (2, 2, 1, 1)
    num_anchors: tuple[int, ...] = (4, 6, 6, 6, 4, 4)

    def __post_init__(self) -> None:
        """Raises UserError unless the numbers of maps agree."""
        maps = len(self.strides) + len(self.extras)
        if len(self.extras) != len(self.extra_strides) or maps != len(self.num_anchors):
            raise UserError(
                f"SSD: {len(self.strides)} strides and {len(self.extras)} extras with "
                f"{len(self.extra_strides)} extra_strides need {maps} num_anchors, got "
                f"{len(self.num_anchors)}"
            )
        super().__post_init__()

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A classifier's variables, by the names that they have here.

        Layers 6 and 7 take every fourth channel of VGG-16's dense layers, and of layer 6 every
        third place (the authors' code).
        """
        adopted = super().adopt(variables)
        params = variables["params"]
        if self.reduced == 1024 and {"fc1", "fc2"} <= params.keys():
            fc1, fc2 = params["fc1"], params["fc2"]
            kernel6 = fc1["kernel"].reshape(7, 7, -1, 4096)[::3, ::3, :, ::4]
            kernel7 = fc2["kernel"][None, None, ::4, ::4]
            adopted["params"]["fc6"] = {"kernel": kernel6, "bias": fc1["bias"][::4]}
            adopted["params"]["fc7"] = {"kernel": kernel7, "bias": fc2["bias"][::4]}
        return adopted

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps images [N, H, W, C] to box offsets [N, P, 4], class logits [N, P, 1 + num_classes].

        Raises UserError for images so small that maps would vanish.
        """
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=glorot_uniform)
        caffe = {"ceil_pool": True} if self.backbone.startswith("vgg") else {}
        maps = self.run_backbone(images, train=train, **caffe)
        maps = choose_strides(self, images, maps, self.strides)
        x = maps[-1]
        if self.reduced:
            x = max_pool(x, (3, 3), (1, 1), 1)
            x = nn.relu(conv(self.reduced, 3, padding=6, dilation=6, name="fc6")(x))
            maps[-1] = x = nn.relu(conv(self.reduced, 1, name="fc7")(x))
        if self.normalize:
            maps[0] = L2Norm(name="normalize")(maps[0])
        for i, (features, stride) in enumerate(zip(self.extras, self.extra_strides, strict=True)):
            if stride == 1 and min(x.shape[1:3]) < 3:
                sides = "x".join(map(str, images.shape[1:3]))
                raise UserError(
                    f"SSD: images of {sides} are too small for {len(self.extras)} extras"
                )
            x = nn.relu(conv(features // 2, 1, name=f"extra{i + 1}_conv1")(x))
            x = conv(features, 3, stride, padding=int(stride > 1), name=f"extra{i + 1}_conv2")(x)
            maps.append(x := nn.relu(x))
        offsets, logits = [], []
        for i, (x, anchors) in enumerate(zip(maps, self.num_anchors, strict=True), 1):
            for kind, size, outputs in (
                ("boxes", 4, offsets),
                ("classes", 1 + self.num_classes, logits),
            ):
                y = conv(anchors * size, 3, padding=1, name=f"{kind}{i}")(x)
                places = y.shape[1] * y.shape[2] * anchors
                outputs.append(y.reshape(-1, places, size).astype(jnp.float32))
        return jnp.concatenate(offsets, axis=1), jnp.concatenate(logits, axis=1)


class L2Norm(nn.Module):
    """Each place's vector divided by its length, times `scale` [C], which starts at 20."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to the same shape."""
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:])
        wide = x.astype(jnp.float32)
        squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        return (y * scale[None, None, None]).astype(x.dtype)


_variant = functools.partial(
    make_variant,
    SSD,
    input_shape=(300, 300, 3),
    paper="Liu et al., SSD: single shot multibox detector",
    year=2015,
    task="detection",
)

VARIANTS = {
    "ssd300": _variant(26_285_486, 31_373_537_792, num_classes=20),
    "ssd300_coco": _variant(34_305_206, 34_360_351_232, num_classes=80),
    "ssd300_vgg16": _variant(35_641_826, 34_858_153_472, num_classes=90),
}

DEVIATIONS = (
    Deviation(
        "ssd300*",
        "20 classes of VOC, 80 of COCO.",
        "torchvision's ssd300_vgg16 has a logit for each of COCO's 90 numbers.",
        "`ssd300`, `ssd300_coco`; `ssd300_vgg16` for torchvision's weights.",
    ),
    Deviation(
        "ssd300*",
        "Layers 6 and 7 start from VGG-16's dense layers, of which some rows are taken.",
        "torchvision initialises them anew (Glorot).",
        "Glorot's, or taken from VGG-16's with its weights `into=backbone`.",
    ),
)
