"""LeNet-5 as in its paper, the dense form in use today, and Caffe's LeNet.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proc.
IEEE 1998, section II; Caffe's network of the same name is examples/mnist/lenet.prototxt.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers import Activation, Conv, avg_pool, conv, get_activation, max_pool
from flaxcnn.models._images import check_images, flatten
from flaxcnn.models._variant import make_variant

Array = jax.Array

SIDE = 32  # pixels: MNIST's 28 and a border for the strokes at the edge

# Table I: an X where a map of C3 (column) sees a map of S2 (row).
C3_TABLE = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""

# The ten centres of the output layer, 7x12 pixels each: # is +1, . is -1. The paper draws the
# whole printable ASCII set and prints only a picture of it; these are drawn after its style.
DIGITS = """
..###.. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.#...#. ..###.. ##...## ##...## ...###. ####### .##.... ####### ##...## ##...##
##...## .####.. ##...## .....## ...###. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## ..#.##. ######. ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. .##.##. ##...## ######. ....##. .#####. ##...##
##...## ...##.. ...##.. ..####. .#..##. .....## ##...## ...##.. .#####. .######
##...## ...##.. ..##... .....## ##..##. .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## ####### .....## ##...## ..##... ##...## .....##
.#...#. .###### ####### ##...## ....##. ##...## ##...## .##.... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. .##.... .#####. .####..
"""


class LeNet5(nn.Module):
    """LeNet-5 of 1998: [N, 32, 32, C] -> minus the squared distances to ten digit bitmaps.

    Smaller images are extended to 32x32 by repeating their edge, so that the border has the value
    of the background however the images are normalised (the paper's are -0.1 for background and
    1.175 for ink). Every layer up to F6 ends in 1.7159 tanh(2x/3).

    The output layer has fixed centres and no parameters. A unit of the paper is the squared
    distance of F6 to its centre, the smallest wins; here it is negated, so that the logits serve
    an argmax and a softmax. Weights start uniform in +-2.4/fan-in, as in the paper, biases at 0.

    Raises UserError for images over 32x32, and for a `num_classes` that is neither 10 nor 0.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes]."""
        if self.num_classes not in (0, 10):
            raise UserError(
                f"num_classes is {self.num_classes}: the output layer of LeNet5 is ten bitmaps "
                "of digits, so it must be 10, or 0 for features"
            )
        check_images(images, 1, self)
        x = extend_edge(images, SIDE)
        if x.shape[1:3] != (SIDE, SIDE):
            raise UserError(
                f"LeNet5 needs images of at most {SIDE}x{SIDE}, got "
                + "x".join(map(str, images.shape[1:]))
            )
        convolve = functools.partial(
            Conv, kernel_size=5, padding="VALID", dtype=self.dtype, kernel_init=lecun_1998
        )
        x = squash(convolve(6, name="c1")(x))
        x = squash(Subsample(self.dtype, name="s2")(x))
        x = squash(TableConv(self.dtype, name="c3")(x))
        x = squash(Subsample(self.dtype, name="s4")(x))
        x = squash(convolve(120, name="c5")(x)).reshape(x.shape[0], 120)
        x = squash(nn.Dense(84, dtype=self.dtype, kernel_init=lecun_1998, name="f6")(x))
        x = x.astype(jnp.float32)
        if self.num_classes:
            x = -jnp.square(x[:, None, :] - digit_bitmaps()[None]).sum(-1)
        return x


class Subsample(nn.Module):
    """Sums 2x2 windows, then scales by one coefficient and adds one bias per map: S2 and S4."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H/2, W/2, C]."""
        shape = x.shape[-1:]
        coefficient = self.param("coefficient", make_uniform(2.4 / 4), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        total = 4 * avg_pool(x, (2, 2), (2, 2))
        return total * _per_map(coefficient, self.dtype) + _per_map(bias, self.dtype)


class TableConv(nn.Module):
    """The 5x5 convolution C3, with the connections of Table I and no others.

    `kernel` is [5, 5, 60]: a filter per X of the table, the 3 of map 0 first.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, 14, 14, 6] to [N, 10, 10, 16]."""
        seen = np.array([list(row) for row in C3_TABLE.split()]) == "X"  # [S2 map, C3 map]
        outputs, inputs = np.nonzero(seen.T)
        fan_in = 25 * seen.sum(0)[outputs]
        init = make_uniform(2.4 / fan_in.reshape(1, 1, -1))
        kernel = self.param("kernel", init, (5, 5, len(fan_in)), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), seen.shape[1:], jnp.float32)
        dense = jnp.zeros((5, 5, *seen.shape)).at[:, :, inputs, outputs].set(kernel)
        y = conv(x.astype(self.dtype), dense.astype(self.dtype), padding="VALID")
        return y + _per_map(bias, self.dtype)


class LeNet(nn.Module):
    """Two 5x5 convolutions, each with 2x2 pooling after it, then dense layers.

    Images smaller than `side` are extended to it by repeating their edge. `conv_activation` is
    `activation` unless given. Weights start uniform in +-sqrt(3/fan-in), Caffe's "xavier"; biases
    at 0.
    """

    num_classes: int
    features: tuple[int, int]
    hidden: tuple[int, ...]
    side: int
    pool: Callable[..., Array] = avg_pool
    activation: str | Activation = "tanh"
    conv_activation: str | Activation | None = None
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes]."""
        check_images(images, 1, self)
        xavier = nn.initializers.lecun_uniform()
        activation = get_activation(self.activation)
        conv_activation = get_activation(self.conv_activation or self.activation)
        x = extend_edge(images, self.side)
        for i, features in enumerate(self.features, 1):
            convolve = Conv(
                features,
                5,
                padding="VALID",
                dtype=self.dtype,
                kernel_init=xavier,
                name=f"conv{i}",
            )
            x = self.pool(conv_activation(convolve(x)), (2, 2), (2, 2))
        x = flatten(x)
        for i, width in enumerate(self.hidden, 1):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name=f"fc{i}")
            x = activation(dense(x))
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=xavier, name="classifier")(x)
        return x.astype(jnp.float32)


def squash(x: Array) -> Array:
    """1.7159 tanh(2x/3), LeNet-5's activation (appendix A): it maps 1 to 1 and -1 to -1."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def extend_edge(images: Array, side: int) -> Array:
    """Pads images [N, H, W, C] to at least `side` pixels each way with copies of their edge."""
    missing = [max(side - size, 0) for size in images.shape[1:3]]
    for axis, extra in enumerate(missing, 1):  # jnp.pad cannot keep a batch divided
        first, last = (
            lax.slice_in_dim(images, i, i + 1, axis=axis) for i in (0, images.shape[axis] - 1)
        )
        copies = [first] * (extra // 2) + [images] + [last] * (extra - extra // 2)
        images = jnp.concatenate(copies, axis)
    return images


def digit_bitmaps() -> np.ndarray:
    """The centres of the output layer: float32 [10, 84] of +-1, digits 0 to 9 row by row."""
    rows = [line.split() for line in DIGITS.strip().splitlines()]
    pixels = np.array([[list(glyph) for glyph in row] for row in rows]) == "#"  # [12, 10, 7]
    return np.where(pixels, 1, -1).astype(np.float32).swapaxes(0, 1).reshape(10, 84)


def make_uniform(bound: float | np.ndarray) -> Initializer:
    """Makes an initialiser that draws uniformly between minus and plus `bound`."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) * jnp.asarray(bound, dtype)

    return init


def lecun_1998(key, shape, dtype=jnp.float32) -> Array:
    """Draws uniformly in +-2.4/fan-in, for kernels whose last axis is their outputs."""
    return make_uniform(2.4 / math.prod(shape[:-1]))(key, shape, dtype)


def _per_map(values: Array, dtype: Dtype) -> Array:
    return values.astype(dtype).reshape(1, 1, 1, -1)


_variant = functools.partial(
    make_variant,
    num_classes=10,
    input_shape=(32, 32, 1),
    paper="LeCun et al., Gradient-based learning applied to document recognition",
    year=1998,
)

VARIANTS = {
    "lenet5_1998": _variant(LeNet5, 60_000, 326_520),
    "lenet5_dense": _variant(LeNet, 61_706, 416_520, features=(6, 16), hidden=(120, 84), side=32),
    "lenet_caffe": _variant(
        LeNet,
        431_080,
        2_293_000,
        features=(20, 50),
        hidden=(500,),
        side=28,
        pool=max_pool,
        activation="relu",
        conv_activation="linear",
        input_shape=(28, 28, 1),
    ),
}
