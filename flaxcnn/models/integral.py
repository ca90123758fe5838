"""Integral regression: where something is, as the mean place of a map of scores.

Sun, Xiao, Wei, Liang, Wei: Integral human pose regression, ECCV 2018 (arXiv:1711.08229). A network
that regresses places by dense layers has to learn for every place anew what a hand looks like; here
all places share it, so that hundreds of images are enough where `deeppose` wants many thousands.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv
from flaxcnn.models._backbone import BackboneNetwork, by_stride, choose_strides
from flaxcnn.models._dense import Upsample, crop
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._network import make_norm
from flaxcnn.models._residual import he_normal
from flaxcnn.models._variant import make_variant

Array = jax.Array


class _Integral(BackboneNetwork, kw_only=True):
    """What joints and boxes share.

    The last maps of each stride from the coarsest down to `stride` are brought to `features`
    channels by 1x1 convolutions and added, the coarser upsampled (Lin et al. 2017,
    arXiv:1612.03144), and a 3x3 convolution follows.

    Attributes:
      stride: of the maps of scores.
      features: see above.
    """

    stride: int = 8
    features: int = 64

    def run_maps(self, images: Array, *, train: bool) -> Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        stages = self.run_backbone(images, train=train)
        choose_strides(self, images, stages, (self.stride,))
        maps = by_stride(images, stages)
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=he_normal)
        x, before = None, 0
        for stride in sorted((s for s in maps if s >= self.stride), reverse=True):
            finer = conv(self.features, 1, name=f"lateral{stride}")(maps[stride])
            if x is not None:
                factor = before // stride
                larger = Upsample(factor, False, name=f"upsample{stride}")(x)
                finer += crop(larger, factor // 2, finer)
            x, before = finer, stride
        norm: Any = make_norm(self, train)
        x = nn.relu(norm(name="head_bn")(x))
        x = conv(self.features, 3, padding=1, use_bias=False, name="head_conv")(x)
        return nn.relu(norm(name="head_conv_bn")(x))

    def score(self, x: Array, maps: int) -> Array:
        """Maps of scores, float32."""
        scores = Conv(maps, 1, dtype=self.dtype, kernel_init=he_normal, name="scores")(x)
        return scores.astype(jnp.float32)


class IntegralPose(_Integral):
    """[N, H, W, C] -> float32 [N, num_classes], x and y of each joint.

    They are relative to the image's centre, as shares of its width and height, as `tasks/pose.py`
    has them. A joint is the mean place of the softmax over its map (equation 3). `num_classes` is
    2 K, for K joints.
    """

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """See the class. Raises UserError for a `num_classes` of no joints."""
        if self.num_classes % 2:
            raise UserError(f"num_classes must be x and y of each joint, got {self.num_classes}")
        scores = self.score(self.run_maps(images, train=train), self.num_classes // 2)
        return find_means(spread(scores)).reshape(images.shape[0], -1)


class IntegralBox(_Integral):
    """[N, H, W, C] -> float32 [N, num_classes], logits and the four sides of a box.

    As `tasks/localization.py` has them: left, top, right and bottom as shares of the image's sides,
    counted from the box of half the image. Each side has a map, and is x or y of its mean place.
    Logits are of the maps' features, averaged by the softmax of one more map. `num_classes` is four
    more than there are classes.
    """

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """See the class. Raises UserError for a `num_classes` of no class."""
        if self.num_classes < 5:
            raise UserError(f"num_classes must be classes and four sides, got {self.num_classes}")
        x = self.run_maps(images, train=train)
        shares = spread(self.score(x, 5))
        left, top, right, bottom = jnp.moveaxis(find_means(shares[..., :4], to_borders=True), 1, 0)
        sides = jnp.stack([left[:, 0], top[:, 1], right[:, 0], bottom[:, 1]], axis=-1)
        seen = jnp.einsum("nhw,nhwc->nc", shares[..., 4], x, precision="highest")
        logits = nn.Dense(self.num_classes - 4, name="classifier")(seen)
        from_half = sides + jnp.asarray([[0.25, 0.25, -0.25, -0.25]])
        return jnp.concatenate([logits.astype(jnp.float32), from_half], axis=-1)


def spread(scores: Array) -> Array:
    """The softmax over the places of maps [N, H, W, K]."""
    return jax.nn.softmax(scores, axis=(1, 2))


def find_means(shares: Array, *, to_borders: bool = False) -> Array:
    """The mean places (x, y) of maps [N, H, W, K] that add up to 1, [N, K, 2].

    From the centre of the map, as shares of its width and height. A place is the middle of a pixel;
    with `to_borders` the outermost ones are on the borders, and those between are stretched.
    """
    height, width = shares.shape[1:3]

    def places(side: int) -> Array:
        steps = (jnp.arange(side) + 0.5) / side - 0.5
        return steps * side / (side - 1) if to_borders else steps

    exact = jax.lax.Precision.HIGHEST
    across = jnp.einsum("nwk,w->nk", shares.sum(1), places(width), precision=exact)
    down = jnp.einsum("nhk,h->nk", shares.sum(2), places(height), precision=exact)
    return jnp.stack([across, down], axis=-1)


_variant = functools.partial(
    make_variant,
    backbone="mobilenet_v2",
    paper="Sun et al., Integral human pose regression",
    year=2018,
)

VARIANTS = {
    "integral_pose": _variant(
        IntegralPose,
        1_878_606,
        408_608_768,
        31_808,
        num_classes=28,
        input_shape=(256, 256, 3),
        task="pose",
    ),
    "integral_box": _variant(
        IntegralBox,
        1_943_021,
        312_503_680,
        31_808,
        num_classes=1004,
        input_shape=(224, 224, 3),
        task="localization",
    ),
}

DEVIATIONS = (
    Deviation(
        "integral_pose, integral_box",
        "Joints, by three deconvolutions on ResNet-50 or 101, from maps of stride 4.",
        "No port is in common use.",
        "Any network with stages; its maps of several strides are added, down to stride 8. A box's "
        "sides in the same way.",
    ),
)
