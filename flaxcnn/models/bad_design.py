"""A worked example: a network of 840 million parameters, and the pyramid that replaces it.

Two 5x5 convolutions keep their maps large, one pooling halves them once, and a dense layer on the
1,634,432 values left has 99.9 % of the parameters. In a pyramid maps halve and features double
from stage to stage, so that every stage but the first costs the same, and the average over each of
the last maps replaces the dense layer: 1/500 of the parameters and 1/45 of the
multiply-adds for as many features before the classifier. Weights start as in Keras (Glorot and
Bengio 2010, uniform; biases zero).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._images import check_images, flatten, flatten_windows
from flaxcnn.models._network import Network, check_window, classify, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array

glorot = nn.initializers.glorot_uniform()


class BadDesign(Network):
    """5x5 convolutions, one pooling, dense layers: [N, H, W, C] -> float32 logits.

    The number of parameters depends on the size of the images.

    Attributes:
      features: of the convolutions.
      hidden: width of the dense layer.
    """

    features: tuple[int, ...] = (256, 128)
    hidden: int = 512

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 3, self)

        def stage(x: Array, index: int) -> Array:
            features = self.features[index - 1]
            conv = Conv(
                features, 5, padding=2, dtype=self.dtype, kernel_init=glorot, name=f"conv{index}"
            )
            return nn.relu(conv(x))

        stages: dict[str, Any] = {
            f"stage{i}": functools.partial(run_block, self, stage, index=i)
            for i in range(1, len(self.features) + 1)
        }
        stages["pool"] = functools.partial(max_pool, window_shape=(5, 5), strides=(2, 2), padding=1)
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        x = outputs[-1]
        check_window(self, x)
        x = flatten_windows(x, self.window) if self.window else flatten(x)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=glorot, name="fc1")(x))
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=glorot, name="classifier")(x)
        return x.astype(jnp.float32)


class PyramidCNN(Network):
    """Stages of one 3x3 convolution and 2x2 pooling: [N, H, W, C] -> float32 logits.

    Attributes:
      features: of the stages.
    """

    features: tuple[int, ...] = (32, 64, 128, 256, 512)

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 2 ** len(self.features), self)

        def stage(x: Array, index: int) -> Array:
            features = self.features[index - 1]
            conv = Conv(
                features, 3, padding=1, dtype=self.dtype, kernel_init=glorot, name=f"conv{index}"
            )
            return max_pool(nn.relu(conv(x)), (2, 2), (2, 2))

        stages = {
            f"stage{i}": functools.partial(run_block, self, stage, index=i)
            for i in range(1, len(self.features) + 1)
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        return classify(self, outputs[-1], train=train, kernel_init=glorot)


_variant = functools.partial(make_variant, num_classes=100, input_shape=(227, 227, 3))

VARIANTS = {
    "bad_design_840m": _variant(
        BadDesign, 837_719_780, 44_038_793_984, paper="a teaching example", year=2017
    ),
    "pyramid_cnn": _variant(PyramidCNN, 1_619_876, 973_563_488, paper="flaxcnn", year=2026),
}
