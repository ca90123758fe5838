"""The networks of airbench, made to reach an accuracy on CIFAR-10 in the least time.

Jordan: 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024 (arXiv:2404.00498), sections 3.1 to
3.3. A frozen convolution whitens patches of the images, three groups of convolutions start as
identities and end with GELUs, and what is left of the maps is classified. Trained by SGD with
Nesterov momentum in 10, 15 or 37 epochs (`configs/cifar10_speed.py`).
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv, conv, global_max_pool, max_pool
from flaxcnn.layers.channels import broadcast_channels
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import Network, check_window, make_norm, run_block, run_stages
from flaxcnn.models._residual import dense_uniform
from flaxcnn.models._variant import make_variant

Array = jax.Array

gelu = functools.partial(nn.gelu, approximate=False)


def init_identity(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A kernel [h, w, C, F] of odd sizes whose output i is input i, as far as there are inputs.

    The other outputs are uniform in +-1 / sqrt(h w C). Section 3.3.
    """
    height, width, inputs, features = shape
    kept = np.arange(min(inputs, features))
    kernel = dense_uniform(key, shape, dtype).at[..., kept].set(0)
    return kernel.at[height // 2, width // 2, kept, kept].set(1)


class Whiten(nn.Module):
    """A 2x2 convolution whose kernel is no parameter but a statistic, and a trained bias.

    `batch_stats` holds its `kernel`, float32 [2, 2, C, 8 C]; see `Airbench.initialize_from`. Until
    then the features are the values of a patch, and their negatives. `params` holds `bias` [8 C].
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H - 1, W - 1, 8 C]."""
        channels = x.shape[-1]
        identity = np.eye(4 * channels, dtype=np.float32)
        kernel = self.variable("batch_stats", "kernel", _make_kernel, identity)
        bias = self.param("bias", nn.initializers.zeros_init(), (8 * channels,), jnp.float32)
        x, weights = jnp.asarray(x, self.dtype), jnp.asarray(kernel.value, self.dtype)
        y = conv(x, weights, padding="VALID")
        return y + broadcast_channels(jnp.asarray(bias, self.dtype), y)


class ConvGroup(nn.Module):
    """A convolution with pooling and one or two without, each with BatchNorm and GELU.

    `conv` and `norm` are Conv and BatchNorm with dtype, initialiser and train mode chosen. With
    `residual` there are three convolutions, and the last two have a shortcut around them that ends
    before the last GELU.
    """

    features: int
    residual: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H / 2, W / 2, features]; sides are rounded down."""
        x = max_pool(self.conv(self.features, 3, name="conv1")(x), (2, 2), (2, 2))
        x = shortcut = gelu(self.norm(name="bn1")(x))
        x = self.norm(name="bn2")(self.conv(self.features, 3, name="conv2")(x))
        if self.residual:
            x = self.norm(name="bn3")(self.conv(self.features, 3, name="conv3")(gelu(x)))
            x += shortcut
        return gelu(x)


class Airbench(Network):
    """Airbench: [N, H, W, 3] -> float32 logits [N, num_classes].

    Its first kernel is in `batch_stats`, and `Variant.statistics` counts it.

    Attributes:
      widths: features of the groups of convolutions.
      residual: a third convolution in each group, and a shortcut around the last two.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    widths: tuple[int, ...]
    residual: bool = False
    momentum: float = 0.6

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 2 ** len(self.widths) + 1, self)
        conv = functools.partial(
            Conv, padding=1, use_bias=False, dtype=self.dtype, kernel_init=init_identity
        )
        norm = make_norm(self, train, momentum=self.momentum, epsilon=1e-12, use_scale=False)

        def whiten(x: Array) -> Array:
            return gelu(Whiten(self.dtype, name="whiten")(x))

        def group(x: Array, index: int) -> Array:
            name = f"group{index + 1}"
            return ConvGroup(self.widths[index], self.residual, conv, norm, name=name)(x)

        stages = {"whiten": functools.partial(run_block, self, whiten)} | {
            f"group{i + 1}": functools.partial(run_block, self, group, index=i)
            for i in range(len(self.widths))
        }
        outputs = run_stages(self, images, stages)
        if self.features_only:
            return outputs
        # Of 32x32 images 3x3 is left: the paper's last pooling, for images of any size.
        x = outputs[-1]
        if self.window:
            check_window(self, x)
            x = max_pool(x, (self.window,) * 2, (1, 1))
        else:
            x = global_max_pool(x)
        x = x.astype(jnp.float32)
        if self.num_classes:
            dense = nn.Dense(
                self.num_classes, use_bias=False, kernel_init=dense_uniform, name="classifier"
            )
            x = dense(x) / 9
        return x

    @nn.nowrap
    def initialize_from(self, variables: Mapping[str, Any], images: Array) -> dict[str, Any]:
        """Returns `variables` with a first kernel that whitens the patches of `images`.

        `images` are float32 [N, H, W, C], normalised: the first 5,000 to train on (section 3.2).
        Filters are the eigenvectors of the covariance of all 2x2 patches, divided by
        sqrt(eigenvalue + 5e-4), the largest first; then their negatives. Computed in float64 by
        NumPy. Raises UserError for what are no images.
        """
        check_images(images, 2, self)
        kernel = _make_kernel(_whitening_filters(np.asarray(images)))
        statistics = variables["batch_stats"]
        whiten = {**statistics["whiten"], "kernel": kernel}
        return {**variables, "batch_stats": {**statistics, "whiten": whiten}}


def _make_kernel(filters: np.ndarray) -> Array:
    """Filters [4 C, 4 C], one in each column, and their negatives: float32 [2, 2, C, 8 C]."""
    size = len(filters)
    kernel = np.concatenate([filters, -filters], axis=1).reshape(2, 2, size // 4, 2 * size)
    return jnp.asarray(kernel, jnp.float32)


def _whitening_filters(images: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """Whitens 2x2 patches: float64 [4 C, 4 C], one filter in each column."""
    _, height, width, channels = images.shape
    total, products, count = 0.0, 0.0, 0
    for chunk in np.array_split(images, -(-len(images) // 500)):
        corners = itertools.product(range(2), range(2))
        taps = [chunk[:, i : height - 1 + i, j : width - 1 + j] for i, j in corners]
        patches = np.concatenate(taps, axis=-1).reshape(-1, 4 * channels).astype(np.float64)
        total, products = total + patches.sum(0), products + patches.T @ patches
        count += len(patches)
    covariance = (products - np.outer(total, total) / count) / (count - 1)
    variances, axes = np.linalg.eigh(covariance)
    filters = (axes / np.sqrt(variances + epsilon))[:, ::-1]
    # An eigenvector's sign is left to LAPACK: here its largest element is positive.
    largest = np.abs(filters).argmax(0)
    return filters * np.sign(filters[largest, np.arange(len(filters))])


_variant = functools.partial(
    make_variant,
    Airbench,
    num_classes=10,
    input_shape=(32, 32, 3),
    paper="Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU",
    year=2024,
)

VARIANTS = {
    "airbench94": _variant(1_971_352, 118_147_360, 2_592, widths=(64, 256, 256)),
    "airbench95": _variant(4_604_440, 301_560_864, 3_872, widths=(128, 384, 384)),
    "airbench96": _variant(
        9_915_416, 451_967_264, 6_432, widths=(128, 384, 512), residual=True, momentum=0.9
    ),
}

DEVIATIONS = (
    Deviation(
        "airbench*",
        "The bias after whitening is trained in the first 3 epochs only.",
        "There are none outside the author's repository.",
        "It is trained to the end.",
    ),
    Deviation(
        "airbench*",
        "Images of 32x32, whose last maps are pooled by a 3x3 window.",
        "There are none outside the author's repository.",
        "The maximum over all of the map: the same at 32x32, and any size from 9x9 on will do.",
    ),
)
