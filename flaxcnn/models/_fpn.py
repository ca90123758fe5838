"""Feature pyramids: maps of several strides, each with what the coarser ones know.

Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature pyramid networks for object detection, CVPR
2017 (arXiv:1612.03144), section 3.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv
from flaxcnn.models._dense import upsample_nearest
from flaxcnn.models._stride import take_every

Array = jax.Array

lecun_uniform = nn.initializers.lecun_uniform()


class FPN(nn.Module):
    """Maps of the stages of any network, each half the size of the one before, with equal channels.

    Attributes:
      features: channels of the maps.
      extra: "pool" for one more map, every other place of the last one (torchvision's
        `LastLevelMaxPool`), or "none".
      dtype: of the computation.
    """

    features: int = 256
    extra: Literal["pool", "none"] = "pool"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, ...]:
        """Maps of [N, H, W, C], the finest first, to as many [N, H, W, features], or one more."""
        conv = functools.partial(Conv, self.features, dtype=self.dtype, kernel_init=lecun_uniform)
        last, outputs = None, []
        for i, x in reversed(list(enumerate(maps, 1))):
            lateral = conv(1, name=f"inner{i}")(x)
            last = lateral if last is None else lateral + upsample_nearest(last, lateral)
            outputs.insert(0, conv(3, padding=1, name=f"layer{i}")(last))
        if self.extra == "pool":
            outputs.append(take_every(outputs[-1], 2))
        return tuple(outputs)
