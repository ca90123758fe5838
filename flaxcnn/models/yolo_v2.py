"""YOLOv2: boxes relative to anchors, on Darknet-19, with the finer maps passed to the last ones.

Redmon, Farhadi: YOLO9000: better, faster, stronger, CVPR 2017 (arXiv:1612.08242), section 2.
Trained by SGD with momentum 0.9 and weight decay 5e-4 for 160 epochs, learning rate 1e-3, after 60
and 90 a tenth; every 10 batches on images of another side, 320 to 608.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv
from flaxcnn.models._backbone import BackboneNetwork, choose_strides
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._variant import make_variant
from flaxcnn.models._yolo import TinyDarknet, make_unit
from flaxcnn.models.darknet import he_normal

Array = jax.Array


class YOLOv2(BackboneNetwork, kw_only=True):
    """YOLOv2: [N, H, W, C] -> float32 [N, H / 32, W / 32, A * (5 + num_classes)].

    Of each cell for each of A anchors (x, y, w, h, objectness) and the scores of the classes, all
    without an activation; what they mean is the task's to say.

    Attributes:
      num_anchors: A.
      backbone: network with maps of stride 32, and 16 for the passthrough; "" for that of the tiny
        form.
      features: of the 3x3 convolutions; the passthrough joins before the last one.
      passthrough: how maps of stride 16, reduced to 64 channels by a 1x1 convolution, join those of
        stride 32: by Darknet's "reorg", whose weights need it (see `reorg`), by "stack", the four
        neighbours of each place in its channels as the paper has it, or not at all, "none".
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    backbone: str = "darknet19"
    num_anchors: int = 5
    features: tuple[int, ...] = (1024, 1024, 1024)
    passthrough: Literal["reorg", "stack", "none"] = "reorg"
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 [N, H / 32, W / 32, A * (5 + num_classes)].

        Raises UserError where the passthrough needs sides that are multiples of 32.
        """
        check_images(images, 1, self)
        unit = make_unit(self, train)
        if self.backbone:
            maps = self.run_backbone(images, train=train)
        else:
            maps = make_tiny(self)(images, train=train)
        (x,) = choose_strides(self, images, maps, (32,))
        *first, last = self.features
        for i, features in enumerate(first, 1):
            x = unit(x, features, 3, f"head_{i}")
        if self.passthrough != "none":
            (finer,) = choose_strides(self, images, maps, (16,))
            if finer.shape[1] != 2 * x.shape[1] or finer.shape[2] != 2 * x.shape[2]:
                sides = "x".join(map(str, images.shape[1:3]))
                raise UserError(f"YOLOv2's passthrough needs sides of 32 times n, got {sides}")
            finer = {"reorg": reorg, "stack": stack}[self.passthrough](
                unit(finer, 64, 1, "passthrough")
            )
            x = jnp.concatenate([finer, x], axis=-1)
        x = unit(x, last, 3, f"head_{len(self.features)}")
        outputs = self.num_anchors * (5 + self.num_classes)
        output = Conv(outputs, 1, dtype=self.dtype, kernel_init=he_normal, name="output")
        return output(x).astype(jnp.float32)


def make_tiny(network: BackboneNetwork) -> TinyDarknet:
    """The network below the tiny detectors, as `backbone` of `network`."""
    return TinyDarknet(
        num_classes=0,
        dtype=network.dtype,
        axis_name=network.axis_name,
        remat=network.remat,
        name="backbone",
    )


def stack(x: Array) -> Array:
    """The values of 2x2 neighbours as channels: [N, 2H, 2W, C] -> [N, H, W, 4C], row by row."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, 4 * channels)


def reorg(x: Array) -> Array:
    """Darknet's layer of that name, with its weights' order: [N, 2H, 2W, C] -> [N, H, W, 4C].

    It takes the values of an image, in the order of channels, rows, columns, for maps of C / 4
    channels and 4H x 4W places, and stacks the neighbours of those; what comes out is read as 4C
    channels of H x W (reorg_cpu in blas.c). So values move to other places of the image.
    """
    count, height, width, channels = x.shape
    x = x.transpose(0, 3, 1, 2)
    x = x.reshape(count, channels // 4, height, 2, width, 2)  # as larger maps, in 2x2 neighbours
    x = x.transpose(0, 3, 5, 1, 2, 4)  # place of the neighbour, channel, row, column
    x = x.reshape(count, 4 * channels, height // 2, width // 2)
    return x.transpose(0, 2, 3, 1)


_variant = functools.partial(
    make_variant,
    YOLOv2,
    input_shape=(416, 416, 3),
    paper="Redmon and Farhadi, YOLO9000: better, faster, stronger",
    year=2016,
    task="detection",
)
_tiny = functools.partial(_variant, backbone="", passthrough="none")

VARIANTS = {
    "yolo_v2": _variant(50_962_889, 14_732_084_224, 20_672, num_classes=80),
    "yolo_v2_voc": _variant(50_655_389, 14_680_167_424, 20_672, num_classes=20),
    "yolo_v2_tiny": _tiny(11_232_057, 2_703_221_248, 5_088, num_classes=80, features=(512,)),
    "yolo_v2_tiny_voc": _tiny(15_861_773, 3_485_520_896, 6_112, num_classes=20, features=(1024,)),
}

DEVIATIONS = (
    Deviation(
        "yolo_v2*",
        "The passthrough stacks neighbours of the 26x26x512 maps, 13x13x2048.",
        "The authors' yolov2.cfg first reduces them to 64 channels, and its reorg layer takes them "
        "for maps of another shape.",
        'As the cfg, which its weights need; `passthrough="stack"` stacks neighbours.',
    ),
)
