"""ZFNet: AlexNet with smaller, denser first filters, for which its authors looked at the features.

Zeiler, Fergus: Visualizing and understanding convolutional networks, ECCV 2014 (arXiv:1311.2901),
Figure 3, and Table 2 for the wider form. Trained by SGD with momentum 0.9, and without weight
decay: filters whose RMS exceeds 0.1 were scaled back to it.
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import run_block, run_stages
from flaxcnn.models._variant import make_variant
from flaxcnn.models.alexnet import (
    RESPONSE_NORMS,
    DenseHeadNetwork,
    ResponseNorm,
    classify_maps,
    normal,
)

Array = jax.Array


class ZFNet(DenseHeadNetwork):
    """ZFNet: [N, H, W, C] -> float32 logits [N, num_classes].

    Pooling keeps the last, cut window: maps of 110-55-26-13-6 for images of 224x224.

    Attributes:
      features: of the five convolutions.
      response_norm: contrast normalisation after the first two poolings, see `AlexNet`.
    """

    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    response_norm: ResponseNorm = "paper"

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 47, self)
        norm = RESPONSE_NORMS[self.response_norm]
        pool = functools.partial(max_pool, window_shape=(3, 3), strides=(2, 2), ceil_mode=True)

        def conv(x: Array, index: int, size: int, stride: int, padding: int) -> Array:
            layer = Conv(
                self.features[index - 1],
                size,
                stride,
                padding=padding,
                dtype=self.dtype,
                kernel_init=normal,
                name=f"conv{index}",
            )
            return nn.relu(layer(x))

        stages = {
            "stage1": lambda x: conv(x, 1, 7, 2, 1),
            "stage2": lambda x: conv(norm(pool(x)), 2, 5, 2, 0),
            "stage3": lambda x: conv(norm(pool(x)), 3, 3, 1, 1),
            "stage4": lambda x: conv(x, 4, 3, 1, 1),
            "stage5": lambda x: conv(x, 5, 3, 1, 1),
            "pool5": pool,
        }
        blocks = {name: functools.partial(run_block, self, stages[name]) for name in stages}
        outputs = run_stages(self, images, blocks)
        if self.features_only:
            return outputs
        hidden = functools.partial(nn.Dense, kernel_init=normal)
        return classify_maps(self, outputs[-1], train=train, hidden=hidden)


_variant = functools.partial(
    make_variant,
    ZFNet,
    num_classes=1000,
    input_shape=(224, 224, 3),
    paper="Zeiler, Fergus, Visualizing and understanding convolutional networks",
    year=2013,
)

VARIANTS = {
    "zfnet": _variant(62_357_608, 1_168_032_896),
    "zfnet_b": _variant(107_627_624, 2_476_704_896, features=(96, 256, 512, 1024, 512)),
}

DEVIATIONS = (
    Deviation(
        "zfnet*",
        "Contrast normalisation after the first two poolings, without its constants.",
        "The ZF network of Faster R-CNN (Caffe) normalises within each channel, size 3, "
        "alpha 5e-5; other ports leave it out.",
        "AlexNet's across channels, k=2 and alpha=1e-4; `response_norm` chooses Caffe's or none.",
    ),
    Deviation(
        "zfnet*",
        "Maps of 110-55-26-13-6 for 224x224, without saying how they come about.",
        "Caffe pools to 55 and 13 as it keeps cut windows; with those dropped, as in PyTorch, "
        "maps are 54-25-12-5.",
        "A border of 1 at the first convolution, and cut windows are kept.",
    ),
)
