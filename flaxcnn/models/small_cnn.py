"""Small convolutional networks for MNIST, Fashion-MNIST, CIFAR-10, cats and dogs, and digits.

The networks of two textbooks (Chollet, Deep Learning with Python, 2017; Geron, Hands-On Machine
Learning, 2nd edition, 2019), teaching examples of that time, and three of this package's own:
`mnist_tiny`, under 10,000 parameters, `mnist_cnn_280k`, and `digits_cnn` for 8x8 images. Weights
start as in Keras (Glorot and Bengio 2010, uniform; biases zero), or as `kernel_init` says.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flaxcnn.layers import (
    Activation,
    Conv,
    Dropout,
    get_activation,
    get_initializer,
    global_avg_pool,
    max_pool,
)
from flaxcnn.models._images import check_images, flatten
from flaxcnn.models._network import make_norm
from flaxcnn.models._variant import make_variant

POOL: Literal["pool"] = "pool"  # 2x2 maximum, stride 2
Maps = tuple[tuple[int, int] | Literal["pool"], ...]  # (features, kernel size) of a convolution


class SmallCNN(nn.Module):
    """Convolutions and pooling as listed in `maps`, dense layers as in `hidden`, a classifier.

    Each convolution has a bias, the activation and, with `batch_norm`, BatchNorm after it. The maps
    are flattened, or averaged with `global_pool`. Dropout follows the maps at rate `maps_dropout`
    and each hidden layer at rate `dropout`. `activation` and `kernel_init`, that of every kernel,
    are names or functions.
    """

    num_classes: int
    maps: Maps
    hidden: tuple[int, ...] = ()
    padding: str = "SAME"
    batch_norm: bool = False
    global_pool: bool = False
    activation: str | Activation = "relu"
    maps_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    kernel_init: str | Initializer = "glorot_uniform"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes]."""
        check_images(images, smallest_side(self.maps, self.padding), self)
        activation = get_activation(self.activation)
        kernel_init = get_initializer(self.kernel_init)
        conv = functools.partial(
            Conv, padding=self.padding, dtype=self.dtype, kernel_init=kernel_init
        )
        norm = make_norm(self, train)
        x, layer = images, 0
        for entry in self.maps:
            if entry == POOL:
                x = max_pool(x, (2, 2), (2, 2))
                continue
            layer += 1
            x = activation(conv(*entry, name=f"conv{layer}")(x))
            if self.batch_norm:
                x = norm(name=f"conv{layer}_bn")(x)
        x = global_avg_pool(x) if self.global_pool else flatten(x)
        x = Dropout(self.maps_dropout, self.axis_name, name="maps_dropout")(x, train=train)
        for i, width in enumerate(self.hidden, 1):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init, name=f"fc{i}")
            x = activation(dense(x))
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)
        return x.astype(jnp.float32)


def smallest_side(maps: Maps, padding: str) -> int:
    """Finds the smallest image side, in pixels, of which one pixel is left after all the maps."""
    side = 1
    for entry in reversed(maps):
        if entry == POOL:
            side *= 2
        elif padding == "VALID":
            side += entry[1] - 1
    return side


_mnist = functools.partial(
    make_variant,
    SmallCNN,
    num_classes=10,
    input_shape=(28, 28, 1),
    paper="a teaching example",
    year=2017,
)
_cifar = functools.partial(_mnist, input_shape=(32, 32, 3))
_chollet = functools.partial(_mnist, padding="VALID")
_cats_dogs = functools.partial(
    _chollet,
    3_453_121,
    236_095_488,
    num_classes=1,  # for the sigmoid: positive means the second class
    maps=((32, 3), POOL, (64, 3), POOL, (128, 3), POOL, (128, 3), POOL),
    hidden=(512,),
    input_shape=(150, 150, 3),
    paper="Chollet, Deep Learning with Python, section 5.2",
)
_own = functools.partial(_mnist, batch_norm=True, paper="flaxcnn", year=2026)

VARIANTS = {
    "mnist_cnn_chollet": _chollet(
        93_322,
        2_794_240,
        maps=((32, 3), POOL, (64, 3), POOL, (64, 3)),
        hidden=(64,),
        paper="Chollet, Deep Learning with Python, section 5.1",
    ),
    "cats_dogs_cnn": _cats_dogs(),
    "cats_dogs_cnn_dropout": _cats_dogs(maps_dropout=0.5),
    "mnist_cnn_220k": _mnist(220_234, 4_039_808, maps=((32, 3), POOL, (64, 3), POOL), hidden=(64,)),
    "cifar_cnn_k2": _cifar(
        528_054,
        1_762_184,
        maps=((16, 2), POOL, (32, 2), POOL, (64, 2), POOL),
        hidden=(500,),
    ),
    "cifar_cnn_5x5": _cifar(
        26_797_450,
        192_930_304,
        maps=((128, 5), (64, 5), (64, 5)),
        hidden=(1024, 256),
        padding="VALID",
    ),
    "cifar_cnn_5x5_bn": _cifar(
        1_632_138,
        133_358_080,
        512,
        maps=((128, 5), (64, 5), POOL, (64, 5), POOL),
        hidden=(1024, 256),
        padding="VALID",
        batch_norm=True,
    ),
    "fashion_mnist_cnn_geron": _mnist(
        1_413_834,
        89_466_496,
        maps=((64, 7), POOL, (128, 3), (128, 3), POOL, (256, 3), (256, 3), POOL),
        hidden=(128, 64),
        dropout=0.5,
        paper="Geron, Hands-On Machine Learning, 2nd edition, chapter 14",
        year=2019,
    ),
    "mnist_tiny": _own(
        9_778,
        2_032_368,
        160,
        maps=((8, 3), (16, 3), POOL, (16, 3), (16, 3), POOL, (24, 3)),
        global_pool=True,
    ),
    "mnist_cnn_280k": _own(
        279_818,
        22_304_512,
        832,
        maps=((32, 5), POOL, (64, 3), (64, 3), POOL, (128, 3), (128, 3)),
        global_pool=True,
    ),
    "digits_cnn": _own(
        36_106,
        330_368,
        192,
        maps=((32, 3), POOL, (64, 3), POOL),
        hidden=(64,),
        dropout=0.5,
        input_shape=(8, 8, 1),
    ),
}
