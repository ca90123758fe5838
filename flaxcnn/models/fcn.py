"""FCN: a classifier's layers as convolutions, which score every place of an image.

Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation, CVPR 2015
(arXiv:1411.4038), section 4. Trained in stages, FCN-32s, then 16s, then 8s from the one before, or
at once; SGD with momentum 0.9 to 0.99 and weight decay 5e-4, score layers from zero.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, max_pool
from flaxcnn.models._dense import DenseNetwork, Upsample, crop
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._variant import make_variant
from flaxcnn.models.vgg import STAGES, VGG

Array = jax.Array

# Where maps begin in those that they are added to, and the image in the last one: what the border
# of 100 pixels comes to (authors' Caffe files).
POOL4_OFFSET, POOL3_OFFSET = 5, 9
IMAGE_OFFSETS = {32: 19, 16: 27, 8: 31}


class FCN(DenseNetwork):
    """FCN on VGG-16: [N, H, W, C] -> float32 logits for each pixel, [N, H, W, num_classes].

    `backbone` has the names of VGG-16, and `fc1`, `fc2` those of its dense layers, whose weights
    they are, fc1's as a kernel [7, 7, 512, 4096].

    Attributes:
      stride: 32, or with scores of the fourth pooling 16, and of the third 8.
      scales: of the fourth and third pooling before they are scored; 1e-2 and 1e-4 at once.
      features, hidden: of the five stages, and of the two layers after them.
      learned: upsampling that is learned; else it stays bilinear, as in the authors' files.
      dropout: after fc1 and fc2.
    """

    stride: int = 8
    scales: tuple[float, float] = (1.0, 1.0)
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    learned: bool = False
    dropout: float = 0.5

    @property
    def classifier(self) -> str:
        """The network whose weights `adopt` takes."""
        return "vgg16"

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """VGG-16's variables, by the names that they have here; dense layers as convolutions."""
        params = dict(variables["params"])
        dense = {}
        for name, size in (("fc1", 7), ("fc2", 1)):
            if name in params:
                layer = params.pop(name)
                kernel = layer["kernel"]
                dense[name] = {**layer, "kernel": kernel.reshape(size, size, -1, kernel.shape[-1])}
        return {"params": {"backbone": params, **dense}}

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 logits [N, H, W, num_classes]."""
        backbone = VGG(
            num_classes=0,
            kernels=STAGES["D"],
            features=self.features,
            border=100,
            ceil_pool=True,
            features_only=True,
            out_indices=(2, 3, 5),
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        stage3, stage4, x = backbone(images, train=train)
        conv = functools.partial(Conv, padding="VALID", dtype=self.dtype)
        score = functools.partial(conv, self.num_classes, 1, kernel_init=nn.initializers.zeros)
        for i, size in enumerate((7, 1), 1):
            x = nn.relu(conv(self.hidden, size, name=f"fc{i}")(x))
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        x = score(name="score32")(x)
        skips = ((16, stage4, POOL4_OFFSET), (8, stage3, POOL3_OFFSET))
        for (stride, maps, offset), scale in zip(skips, self.scales, strict=True):
            if stride < self.stride:
                break
            pooled = max_pool(maps, (2, 2), (2, 2), 0, True)
            x = Upsample(2, self.learned, name=f"upsample{stride}")(x)
            x = x + crop(score(name=f"score{stride}")(pooled * scale), offset, x)
        x = Upsample(self.stride, self.learned, name="upsample")(x)
        return crop(x, IMAGE_OFFSETS[self.stride], images).astype("float32")


_variant = functools.partial(
    make_variant,
    FCN,
    num_classes=21,
    input_shape=(500, 500, 3),
    paper="Long et al., Fully convolutional networks for semantic segmentation",
    year=2015,
    task="segmentation",
)

# Multiply-adds without those of bilinear upsampling.
VARIANTS = {
    "fcn32s_vgg16": _variant(134_346_581, 180_903_432_960, stride=32),
    "fcn16s_vgg16": _variant(134_357_354, 180_924_248_832, stride=16),
    "fcn8s_vgg16": _variant(134_362_751, 180_965_880_576, stride=8),
    "fcn8s_atonce_vgg16": _variant(134_362_751, 180_965_880_576, stride=8, scales=(1e-2, 1e-4)),
}

DEVIATIONS = (
    Deviation(
        "fcn*_vgg16",
        "Upsampling starts bilinear and is learned but for the last (section 3.3).",
        "The authors' files fix all of it, as full matrices between classes with zeros beside the "
        "diagonal.",
        "Fixed, no parameters, and the diagonal alone; `learned=True` for the paper's.",
    ),
)
