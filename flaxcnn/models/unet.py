"""U-Net: maps of every resolution on the way down are taken up again on the way back.

Ronneberger, Fischer, Brox: U-Net: convolutional networks for biomedical image segmentation, MICCAI
2015 (arXiv:1505.04597), Figure 1.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, ConvTranspose, max_pool
from flaxcnn.models._dense import DenseNetwork, crop
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import make_norm, run_block
from flaxcnn.models._variant import make_variant

Array = jax.Array

he_normal = nn.initializers.he_normal()


class UNet(DenseNetwork):
    """U-Net: [N, H, W, C] -> float32 logits for each pixel, [N, H, W, num_classes].

    Attributes:
      features: of the two convolutions at each resolution, the last at the bottom.
      batch_norm: BatchNorm between each convolution and its ReLU.
    """

    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    batch_norm: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 logits [N, H, W, num_classes]."""
        check_images(images, 1, self)
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=he_normal)
        norm = make_norm(self, train)

        def double(x: Array, level: int, way: str) -> Array:
            for i in (1, 2):
                name = f"{way}{level + 1}_conv{i}"
                x = conv(self.features[level], 3, use_bias=not self.batch_norm, name=name)(x)
                if self.batch_norm:
                    x = norm(name=f"{way}{level + 1}_bn{i}")(x)
                x = nn.relu(x)
            return x

        skips, x = [], images
        bottom = len(self.features) - 1
        for level in range(bottom):
            skips.append(run_block(self, double, x, level=level, way="down"))
            x = max_pool(skips[-1], (2, 2), (2, 2), 0, True)
        x = run_block(self, double, x, level=bottom, way="down")
        for level in reversed(range(bottom)):
            up = ConvTranspose(
                self.features[level],
                2,
                2,
                dtype=self.dtype,
                kernel_init=he_normal,
                name=f"up{level + 1}",
            )
            x = jnp.concatenate([skips[level], crop(up(x), 0, skips[level])], axis=-1)
            x = run_block(self, double, x, level=level, way="up")
        x = Conv(self.num_classes, 1, dtype=self.dtype, kernel_init=he_normal, name="classifier")(x)
        return x.astype("float32")


_variant = functools.partial(
    make_variant,
    UNet,
    num_classes=2,
    input_shape=(572, 572, 1),
    paper="Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation",
    year=2015,
    task="segmentation",
)

VARIANTS = {
    "unet": _variant(31_030_658, 241_207_323_648),
    "unet_bn": _variant(31_036_546, 241_207_323_648, 11_776, batch_norm=True),
}

DEVIATIONS = (
    Deviation(
        "unet*",
        "3x3 convolutions without a border: 572x572 pixels give 388x388, and maps that are taken "
        "up are cropped; weighted borders between cells in the loss.",
        "Ports pad, most with BatchNorm; sides must be multiples of 16 in many.",
        "Padded, any side; `unet_bn` with BatchNorm; no weighted borders.",
    ),
)
