"""YOLOv3: boxes at three scales, on Darknet-53, each scale with what the coarser ones found.

Redmon, Farhadi: YOLOv3: an incremental improvement, 2018 (arXiv:1804.02767), section 2.3. Trained
by SGD with momentum 0.9 and weight decay 5e-4 on images of 320 to 608 pixels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, max_pool
from flaxcnn.models._backbone import BackboneNetwork, choose_strides
from flaxcnn.models._dense import upsample_nearest
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images
from flaxcnn.models._network import run_block
from flaxcnn.models._variant import make_variant
from flaxcnn.models._yolo import Unit, make_unit
from flaxcnn.models.darknet import he_normal
from flaxcnn.models.yolo_v2 import make_tiny

Array = jax.Array


class YOLOv3Network(BackboneNetwork, kw_only=True):
    """Attributes of both forms.

    Attributes:
      num_anchors: A, of each scale.
      backbone: network with maps of the strides of the scales.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    num_anchors: int = 3
    momentum: float = 0.99

    def put_out(self, x: Array, stride: int) -> Array:
        """The 1x1 convolution that ends a scale."""
        outputs = self.num_anchors * (5 + self.num_classes)
        name = f"scale{stride}_output"
        layer = Conv(outputs, 1, dtype=self.dtype, kernel_init=he_normal, name=name)
        return layer(x).astype(jnp.float32)


class YOLOv3(YOLOv3Network):
    """YOLOv3: [N, H, W, C] -> maps of stride 8, 16, 32, each float32 [N, h, w, A * (5 + classes)].

    Of each cell for each of A anchors (x, y, w, h, objectness) and the scores of the classes, all
    without an activation; what they mean is the task's to say.

    Attributes:
      features: of the narrow convolutions at stride 32; the wide have twice as many, and each finer
        scale half.
      spp: maxima over 5x5, 9x9 and 13x13 places among the maps of stride 32 ("SPP").
    """

    backbone: str = "darknet53"
    features: int = 512
    spp: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, Array, Array]:
        """Maps images [N, H, W, C] to a tuple of float32 [N, h, w, A * (5 + num_classes)]."""
        check_images(images, 1, self)
        unit = make_unit(self, train)
        strides = (32, 16, 8)
        maps = self.run_backbone(images, train=train)
        maps = choose_strides(self, images, maps, strides)
        x, outputs = maps[0], []
        for i, stride in enumerate(strides):
            if i:
                x = unit(x, self.features // 2**i, 1, f"scale{stride}_down")
                x = jnp.concatenate([upsample_nearest(x, maps[i]), maps[i]], axis=-1)
            x, wide = run_block(
                self,
                _convolve,
                x,
                unit=unit,
                features=self.features // 2**i,
                name=f"scale{stride}",
                spp=self.spp and i == 0,
            )
            outputs.append(self.put_out(wide, stride))
        return tuple(outputs[::-1])  # pyright: ignore[reportReturnType]


def _convolve(x: Array, unit: Unit, features: int, name: str, spp: bool) -> tuple[Array, Array]:
    """1x1 and 3x3 convolutions in turn, six: the maps for the next scale, and for the output."""
    number = 1
    for i in range(5):
        x = unit(x, 2 * features if i % 2 else features, 3 if i % 2 else 1, f"{name}_{number}")
        number += 1
        if spp and i == 2:
            pools = [max_pool(x, (size, size), (1, 1), size // 2) for size in (13, 9, 5)]
            x = unit(jnp.concatenate([*pools, x], axis=-1), features, 1, f"{name}_{number}")
            number += 1
    return x, unit(x, 2 * features, 3, f"{name}_{number}")


class YOLOv3Tiny(YOLOv3Network):
    """The tiny form: [N, H, W, C] -> maps of stride 16 and 32, as those of YOLOv3.

    Attributes:
      strides: of its maps, the coarse and the fine one; (16, 8) is for small objects.
      backbone: "" for the seven convolutions of yolov3-tiny.cfg.
      features: of the 1x1 convolution on the maps of stride 32.
    """

    backbone: str = ""
    features: int = 256
    strides: tuple[int, int] = (32, 16)

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps images [N, H, W, C] to a tuple of float32 [N, h, w, A * (5 + num_classes)]."""
        check_images(images, 1, self)
        unit = make_unit(self, train)
        if self.backbone:
            maps = self.run_backbone(images, train=train)
        else:
            maps = make_tiny(self)(images, train=train)
        above, below = self.strides
        coarse, fine = choose_strides(self, images, maps, self.strides)
        x = unit(coarse, self.features, 1, f"scale{above}_1")
        last = self.put_out(unit(x, 2 * self.features, 3, f"scale{above}_2"), above)
        x = unit(x, self.features // 2, 1, f"scale{below}_down")
        x = jnp.concatenate([upsample_nearest(x, fine), fine], axis=-1)
        return self.put_out(unit(x, self.features, 3, f"scale{below}_1"), below), last


_variant = functools.partial(
    make_variant,
    paper="Redmon and Farhadi, YOLOv3: an incremental improvement",
    year=2018,
    task="detection",
    num_classes=80,
)
_side = functools.partial(_variant, YOLOv3, input_shape=(416, 416, 3))

VARIANTS = {
    "yolo_v3": _side(61_949_149, 32_932_037_632, 52_608),
    "yolo_v3_voc": _side(61_626_049, 32_713_987_072, 52_608, num_classes=20),
    "yolo_v3_spp": _variant(
        YOLOv3, 62_998_749, 70_724_486_144, 53_632, spp=True, input_shape=(608, 608, 3)
    ),
    "yolo_v3_tiny": _variant(
        YOLOv3Tiny, 8_852_366, 2_782_480_896, 6_368, input_shape=(416, 416, 3)
    ),
}

DEVIATIONS = (
    Deviation(
        "yolo_v3_spp",
        "Not in the paper.",
        "The authors' yolov3-spp.cfg.",
        "As the cfg.",
    ),
)
