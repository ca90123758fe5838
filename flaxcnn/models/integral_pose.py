"""Integral pose: each joint is where a map of scores lies on average.

Sun, Xiao, Wei, Liang, Wei: Integral human pose regression, ECCV 2018 (arXiv:1711.08229). A network
that regresses joints has to learn for every place anew what a hand looks like; here all places
share it, so that hundreds of images are enough where `deeppose` wants many thousands.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv
from flaxcnn.models._dense import Upsample, crop
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._network import make_norm
from flaxcnn.models._residual import he_normal
from flaxcnn.models._variant import make_variant
from flaxcnn.models.fcn_backbone import BackboneNetwork, by_stride

Array = jax.Array


class IntegralPose(BackboneNetwork):
    """[N, H, W, C] -> float32 [N, num_classes], x and y of each joint.

    They are relative to the image's centre, as shares of its width and height, as `tasks/pose.py`
    has them. The last maps of each stride from the coarsest down to `stride` are brought to
    `features` channels by 1x1 convolutions and added, the coarser upsampled (Lin et al. 2017,
    arXiv:1612.03144); a 3x3 convolution and a 1x1 make a map of scores for each joint. The joint is
    the mean place of the softmax over the map (equation 3).

    Attributes:
      num_classes: 2 K, for K joints.
      stride: of the maps of scores.
      features: see above.
    """

    stride: int = 8
    features: int = 64

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """See the class. Raises UserError for a `num_classes` of no joints."""
        if self.num_classes % 2:
            raise UserError(f"num_classes must be x and y of each joint, got {self.num_classes}")
        maps = by_stride(self, images, self.run_backbone(images, train=train))
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
        x = nn.relu(norm(name="head_conv_bn")(x))
        scores = conv(self.num_classes // 2, 1, name="scores")(x)
        return find_means(scores.astype(jnp.float32)).reshape(len(images), -1)


def find_means(scores: Array) -> Array:
    """The mean places of the softmax over maps [N, H, W, K], [N, K, 2].

    (x, y) from the centre of the map, as shares of its width and height.
    """
    count, height, width, maps = scores.shape
    shares = jax.nn.softmax(scores.reshape(count, -1, maps), axis=1).reshape(scores.shape)
    x = (jnp.arange(width) + 0.5) / width - 0.5
    y = (jnp.arange(height) + 0.5) / height - 0.5
    exact = jax.lax.Precision.HIGHEST
    across = jnp.einsum("nwk,w->nk", shares.sum(1), x, precision=exact)
    down = jnp.einsum("nhk,h->nk", shares.sum(2), y, precision=exact)
    return jnp.stack([across, down], axis=-1)


VARIANTS = {
    "integral_pose": make_variant(
        IntegralPose,
        1_878_606,
        408_608_768,
        31_808,
        num_classes=28,
        backbone="mobilenet_v2",
        input_shape=(256, 256, 3),
        paper="Sun et al., Integral human pose regression",
        year=2018,
        task="pose",
    ),
}

DEVIATIONS = (
    Deviation(
        "integral_pose",
        "Three deconvolutions on ResNet-50 or 101, maps of stride 4.",
        "No port is in common use.",
        "Any network with stages; its maps of several strides are added, down to stride 8.",
    ),
)
