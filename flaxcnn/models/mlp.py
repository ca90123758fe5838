"""Multilayer perceptrons on MNIST and CIFAR-10, the baselines without convolutions.

Sizes as in teaching examples; weights start as in Keras (Glorot and Bengio
2010, uniform; biases zero), or as `kernel_init` says.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flaxcnn.layers import (
    Activation,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    get_activation,
    get_initializer,
)
from flaxcnn.models._images import check_images, flatten
from flaxcnn.models._variant import make_variant


class MLP(nn.Module):
    """Dense layers of the widths in `hidden`, then a linear classifier.

    `activation` and `kernel_init`, that of every kernel, are names or functions. Optional noise in
    training: `noise` is the standard deviation added to the images, `gaussian_dropout` and
    `dropout` are rates after each hidden layer, in this order.
    """

    num_classes: int
    hidden: tuple[int, ...]
    activation: str | Activation = "relu"
    noise: float = 0.0
    gaussian_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    kernel_init: str | Initializer = "glorot_uniform"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes]."""
        check_images(images, 1, self)
        activation = get_activation(self.activation)
        kernel_init = get_initializer(self.kernel_init)
        x = GaussianNoise(self.noise, self.axis_name, name="noise")(images, train=train)
        x = flatten(x)
        for i, width in enumerate(self.hidden, 1):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init, name=f"fc{i}")
            x = activation(dense(x))
            x = GaussianDropout(
                self.gaussian_dropout, self.axis_name, name=f"fc{i}_gaussian_dropout"
            )(x, train=train)
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)
        return x.astype(jnp.float32)


_variant = functools.partial(
    make_variant, MLP, num_classes=10, paper="a teaching example", year=2017
)

VARIANTS = {
    "mnist_mlp_512": _variant(669_706, 668_672, hidden=(512, 512), input_shape=(28, 28, 1)),
    "cifar_mlp": _variant(3_411_722, 3_410_432, hidden=(1024, 256), input_shape=(32, 32, 3)),
}
