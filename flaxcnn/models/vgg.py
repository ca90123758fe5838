"""VGG: 3x3 convolutions throughout, two to four between poolings.

Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition, ICLR 2015
(arXiv:1409.1556), Table 1. Trained by SGD with momentum 0.9 and weight decay 5e-4.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from flax.typing import Initializer

from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import make_norm, run_block, run_stages
from flaxcnn.models._variant import make_variant
from flaxcnn.models.alexnet import (
    RESPONSE_NORMS,
    DenseHeadNetwork,
    ResponseNorm,
    classify_maps,
    normal,
)

Array = jax.Array

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
glorot_uniform = nn.initializers.glorot_uniform()

# Table 1: the kernel sizes of the convolutions in each stage.
STAGES = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


class VGG(DenseHeadNetwork, kw_only=True):
    """VGG: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      kernels: kernel sizes of the convolutions in each stage; 2x2 pooling follows each stage.
      features: of the stages.
      batch_norm: BatchNorm between each convolution and its ReLU.
      response_norm: local response normalisation after the first convolution, see `AlexNet`.
      kernel_init, dense_init: of the kernels of convolutions and of dense layers.
      border: zeros around the images; 100 in FCN.
      ceil_pool: pooling with a last, cut window, as in Caffe, where a side is odd.
    """

    kernels: tuple[tuple[int, ...], ...]
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    map_side: int = 7
    batch_norm: bool = False
    response_norm: ResponseNorm = "none"
    kernel_init: Initializer = he_normal
    dense_init: Initializer = normal
    border: int = 1
    ceil_pool: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 2 ** len(self.kernels), self)
        pool = functools.partial(
            max_pool, window_shape=(2, 2), strides=(2, 2), padding=0, ceil_mode=self.ceil_pool
        )
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=self.kernel_init)
        norm = make_norm(self, train)

        def stage(x: Array, index: int) -> Array:
            if index > 1:
                x = pool(x)
            for i, size in enumerate(self.kernels[index - 1], 1):
                name = f"stage{index}_conv{i}"
                border = self.border if index == i == 1 else size // 2
                x = conv(self.features[index - 1], size, padding=border, name=name)(x)
                if self.batch_norm:
                    x = norm(name=f"stage{index}_bn{i}")(x)
                x = nn.relu(x)
                if index == i == 1:
                    x = RESPONSE_NORMS[self.response_norm](x)
            return x

        stages: dict[str, Any] = {
            f"stage{i}": functools.partial(run_block, self, stage, index=i)
            for i in range(1, len(self.kernels) + 1)
        }
        outputs = run_stages(self, images, stages | {f"pool{len(stages)}": pool})
        if self.features_only:
            return outputs
        return classify_maps(
            self,
            outputs[-1],
            train=train,
            hidden=functools.partial(nn.Dense, kernel_init=self.dense_init),
            classifier_init=self.dense_init,
        )


_variants = {
    letter: functools.partial(
        make_variant,
        VGG,
        num_classes=1000,
        kernels=kernels,
        input_shape=(224, 224, 3),
        paper="Simonyan, Zisserman, Very deep convolutional networks for large-scale image "
        f"recognition, configuration {letter}",
        year=2014,
    )
    for letter, kernels in STAGES.items()
}
_GLOROT: dict[str, Any] = {"kernel_init": glorot_uniform, "dense_init": glorot_uniform}

VARIANTS = {
    "vgg11": _variants["A"](132_863_336, 7_609_090_048),
    "vgg11_lrn": _variants["A"](132_863_336, 7_609_090_048, response_norm="paper", **_GLOROT),
    "vgg13": _variants["B"](133_047_848, 11_308_466_176),
    "vgg16_c": _variants["C"](133_638_952, 11_770_888_192, **_GLOROT),
    "vgg16": _variants["D"](138_357_544, 15_470_264_320),
    "vgg19": _variants["E"](143_667_240, 19_632_062_464),
    "vgg11_bn": _variants["A"](132_868_840, 7_609_090_048, 5_504, batch_norm=True),
    "vgg13_bn": _variants["B"](133_053_736, 11_308_466_176, 5_888, batch_norm=True),
    "vgg16_bn": _variants["D"](138_365_992, 15_470_264_320, 8_448, batch_norm=True),
    "vgg19_bn": _variants["E"](143_678_248, 19_632_062_464, 11_008, batch_norm=True),
}

DEVIATIONS = (
    Deviation(
        "vgg*",
        "Kernels start with variance 0.01 in A, from A's in deeper networks; Glorot's would do "
        "without (section 3.1).",
        "torchvision starts convolutions as He et al., dense kernels with deviation 0.01; Keras "
        "with Glorot's.",
        "torchvision's where it has the network; `vgg11_lrn` and `vgg16_c` Glorot's.",
    ),
    Deviation(
        "vgg*_bn",
        "No BatchNorm: the paper is older.",
        "torchvision and timm put it after each convolution, which keeps its bias.",
        "As in torchvision.",
    ),
    Deviation(
        "vgg*",
        "Dense layers turn into convolutions for images of other sizes, and scores are averaged.",
        "torchvision averages the last maps to 7x7; timm convolves above 7x7 and averages below; "
        "Keras flattens them as they are.",
        "torchvision's; `map_side` is Keras' for one size of images.",
    ),
    Deviation(
        "vgg*",
        "Dropout of 0.5 on the two hidden dense layers.",
        "Keras leaves it out, timm's default rate is 0.",
        "The paper's and torchvision's; `dropout=0` for the others'.",
    ),
)
