"""Small convolutional networks for MNIST, Fashion-MNIST, CIFAR-10, cats and dogs, and digits.

The networks of two textbooks (Chollet, Deep Learning with Python, 2017; Geron, Hands-On Machine
Learning, 2nd edition, 2019), those of the notebooks this project grew from, and three of its own:
`mnist_tiny`, under 10,000 parameters, `mnist_cnn_280k`, and `digits_cnn` for 8x8 images. Weights
start as in Keras (Glorot and Bengio 2010, uniform; biases zero).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dropout,
    get_activation,
    global_avg_pool,
    max_pool,
)
from flaxcnn.models._images import check_images, flatten
from flaxcnn.models._variant import Variant

POOL: Literal["pool"] = "pool"  # 2x2 maximum, stride 2
Maps = tuple[tuple[int, int] | Literal["pool"], ...]

# (features, kernel size) of each convolution, and where the maps are pooled.
MAPS: dict[str, Maps] = {
    "mnist_cnn_chollet": ((32, 3), POOL, (64, 3), POOL, (64, 3)),
    "cats_dogs_cnn": ((32, 3), POOL, (64, 3), POOL, (128, 3), POOL, (128, 3), POOL),
    "mnist_cnn_220k": ((32, 3), POOL, (64, 3), POOL),
    "cifar_cnn_k2": ((16, 2), POOL, (32, 2), POOL, (64, 2), POOL),
    "cifar_cnn_5x5": ((128, 5), (64, 5), (64, 5)),
    "cifar_cnn_5x5_bn": ((128, 5), (64, 5), POOL, (64, 5), POOL),
    "fashion_mnist_cnn_geron": (
        *((64, 7), POOL),
        *((128, 3), (128, 3), POOL),
        *((256, 3), (256, 3), POOL),
    ),
    "mnist_tiny": ((8, 3), (16, 3), POOL, (16, 3), (16, 3), POOL, (24, 3)),
    "mnist_cnn_280k": ((32, 5), POOL, (64, 3), (64, 3), POOL, (128, 3), (128, 3)),
    "digits_cnn": ((32, 3), POOL, (64, 3), POOL),
}


class SmallCNN(nn.Module):
    """Convolutions and pooling as listed in `maps`, dense layers as in `hidden`, a classifier.

    Each convolution has a bias, the activation and, with `batch_norm`, BatchNorm after it (the
    order of the notebooks). The maps are flattened, or averaged with `global_pool`. Dropout
    follows the maps at rate `maps_dropout` and each hidden layer at rate `dropout`.
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

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes]."""
        check_images(images, smallest_side(self.maps, self.padding), self)
        activation = get_activation(self.activation)
        glorot = nn.initializers.glorot_uniform()
        conv = functools.partial(Conv, padding=self.padding, dtype=self.dtype, kernel_init=glorot)
        norm = functools.partial(
            BatchNorm, not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name
        )
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
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=glorot, name=f"fc{i}")
            x = activation(dense(x))
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=glorot, name="classifier")(x)
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


_CATS_DOGS = Variant(
    network=SmallCNN,
    kwargs={
        "num_classes": 1,
        "maps": MAPS["cats_dogs_cnn"],
        "hidden": (512,),
        "padding": "VALID",
    },
    input_shape=(150, 150, 3),
    params=3_453_121,
    macs=236_095_488,
    paper="Chollet, Deep Learning with Python, section 5.2",
    year=2017,
)

VARIANTS = {
    "mnist_cnn_chollet": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["mnist_cnn_chollet"],
            "hidden": (64,),
            "padding": "VALID",
        },
        input_shape=(28, 28, 1),
        params=93_322,
        macs=2_794_240,
        paper="Chollet, Deep Learning with Python, section 5.1",
        year=2017,
    ),
    # One logit for the sigmoid: positive means the second class.
    "cats_dogs_cnn": _CATS_DOGS,
    "cats_dogs_cnn_dropout": dataclasses.replace(
        _CATS_DOGS, kwargs={**_CATS_DOGS.kwargs, "maps_dropout": 0.5}
    ),
    "mnist_cnn_220k": Variant(
        network=SmallCNN,
        kwargs={"num_classes": 10, "maps": MAPS["mnist_cnn_220k"], "hidden": (64,)},
        input_shape=(28, 28, 1),
        params=220_234,
        macs=4_039_808,
        paper="seed notebook",
        year=2017,
    ),
    "cifar_cnn_k2": Variant(
        network=SmallCNN,
        kwargs={"num_classes": 10, "maps": MAPS["cifar_cnn_k2"], "hidden": (500,)},
        input_shape=(32, 32, 3),
        params=528_054,
        macs=1_762_184,
        paper="seed notebook",
        year=2017,
    ),
    "cifar_cnn_5x5": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["cifar_cnn_5x5"],
            "hidden": (1024, 256),
            "padding": "VALID",
        },
        input_shape=(32, 32, 3),
        params=26_797_450,
        macs=192_930_304,
        paper="seed notebook",
        year=2017,
    ),
    "cifar_cnn_5x5_bn": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["cifar_cnn_5x5_bn"],
            "hidden": (1024, 256),
            "padding": "VALID",
            "batch_norm": True,
        },
        input_shape=(32, 32, 3),
        params=1_632_138,
        statistics=512,
        macs=133_358_080,
        paper="seed notebook",
        year=2017,
    ),
    "fashion_mnist_cnn_geron": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["fashion_mnist_cnn_geron"],
            "hidden": (128, 64),
            "dropout": 0.5,
        },
        input_shape=(28, 28, 1),
        params=1_413_834,
        macs=89_466_496,
        paper="Geron, Hands-On Machine Learning, 2nd edition, chapter 14",
        year=2019,
    ),
    "mnist_tiny": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["mnist_tiny"],
            "batch_norm": True,
            "global_pool": True,
        },
        input_shape=(28, 28, 1),
        params=9_778,
        statistics=160,
        macs=2_032_368,
        paper="this project",
        year=2026,
    ),
    "mnist_cnn_280k": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["mnist_cnn_280k"],
            "batch_norm": True,
            "global_pool": True,
        },
        input_shape=(28, 28, 1),
        params=279_818,
        statistics=832,
        macs=22_304_512,
        paper="this project",
        year=2026,
    ),
    "digits_cnn": Variant(
        network=SmallCNN,
        kwargs={
            "num_classes": 10,
            "maps": MAPS["digits_cnn"],
            "hidden": (64,),
            "batch_norm": True,
            "dropout": 0.5,
        },
        input_shape=(8, 8, 1),
        params=36_106,
        statistics=192,
        macs=330_368,
        paper="this project",
        year=2026,
    ),
}
