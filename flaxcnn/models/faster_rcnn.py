"""Faster R-CNN: a first stage proposes boxes, a second one says what they hold.

Ren, He, Girshick, Sun: Faster R-CNN: towards real-time object detection with region proposal
networks, NIPS 2015 (arXiv:1506.01497), on VGG-16; on feature pyramids as Lin et al., CVPR 2017
(arXiv:1612.03144), in torchvision's form. Trained by SGD with momentum 0.9 and weight decay 5e-4
(1e-4), learning rate 1e-3 (0.02 for 16 images), later a tenth.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.layers import Dropout, roi_max_pool
from flaxcnn.models._backbone import choose_strides
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._fpn import FPN
from flaxcnn.models._two_stage import Size, TwoStageDetector, align_on_pyramid
from flaxcnn.models._variant import make_variant

Array = jax.Array

# As PyTorch's linear layers start.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class FasterRCNN(TwoStageDetector, kw_only=True):
    """Faster R-CNN on a feature pyramid: [N, H, W, C] -> `TwoStageOutputs`.

    Attributes:
      backbone: network with maps of `strides`.
      strides: of the maps below the pyramid, each twice the one before; one more map, of every
        other place of the last, has anchors alone.
      fpn_features: channels of the pyramid's maps.
      hidden: widths of the second stage's dense layers.
      frozen_norm: the backbone's BatchNorm is frozen (see `Network`).
    """

    backbone: str = "resnet50"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    fpn_features: int = 256
    hidden: tuple[int, ...] = (1024, 1024)
    frozen_norm: bool = True

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A classifier's variables, by the names that they have here."""
        adopted = super().adopt(variables)
        if not self.frozen_norm:
            return adopted
        params: Any = flatten_dict(unfreeze(adopted["params"]))
        statistics: Any = flatten_dict(unfreeze(adopted.get("batch_stats", {})))
        norms = {path[:-1] for path in statistics}
        moved = {path: params.pop(path) for path in list(params) if path[:-1] in norms}
        return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics | moved)}

    def find_maps(self, images: Array, train: bool) -> tuple[Array, ...]:
        """The maps of the pyramid."""
        frozen = {"frozen_norm": True} if self.frozen_norm else {}
        maps = self.run_backbone(images, train=train, **frozen)
        maps = choose_strides(self, images, maps, self.strides)
        return FPN(self.fpn_features, dtype=self.dtype, name="fpn")(maps)

    def describe_regions(
        self, maps: tuple[Array, ...], boxes: Array, valid: Array, image_size: Size, train: bool
    ) -> Array:
        """7x7 features of each box, through dense layers."""
        x = align_on_pyramid(maps[:-1], boxes, valid, 7, image_size)
        x = x.reshape(*x.shape[:2], -1)
        for i, width in enumerate(self.hidden, 1):
            layer = nn.Dense(width, dtype=self.dtype, kernel_init=torch_uniform, name=f"fc{i}")
            x = nn.relu(layer(x))
        return x


class FasterRCNNOnMaps(TwoStageDetector, kw_only=True):
    """Faster R-CNN on maps of one stride, as in the paper: [N, H, W, C] -> `TwoStageOutputs`.

    Attributes:
      backbone: network with maps of `stride`, "vgg16" in the paper.
      stride: of its maps.
      hidden: widths of the dense layers, VGG-16's.
      dropout: of each of them.
      pool_side: of the grid that RoI max pooling makes of a box.
    """

    softmax_rpn: ClassVar[bool] = True

    backbone: str = "vgg16"
    stride: int = 16
    anchor_sizes: tuple[float, ...] = (128, 256, 512)
    before_nms: tuple[int, int] = (12000, 6000)
    num_proposals: tuple[int, int] = (2000, 300)
    num_samples: int = 128
    iou_threshold: float = 0.3
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    pool_side: int = 7

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A classifier's variables, by the names that they have here; dense layers are the head's.

        Those of VGG-16, which are as wide.
        """
        params = dict(variables["params"])
        dense = {n: params.pop(n) for n in ("fc1", "fc2") if n in params}
        adopted = super().adopt({**variables, "params": params})
        if self.hidden == (4096, 4096) and self.pool_side == 7:
            adopted["params"] |= dense
        return adopted

    def find_maps(self, images: Array, train: bool) -> tuple[Array, ...]:
        """The last maps of the stride."""
        caffe = {"ceil_pool": True} if self.backbone.startswith("vgg") else {}
        maps = self.run_backbone(images, train=train, **caffe)
        return tuple(choose_strides(self, images, maps, (self.stride,)))

    def describe_regions(
        self, maps: tuple[Array, ...], boxes: Array, valid: Array, image_size: Size, train: bool
    ) -> Array:
        """Maxima in a grid of each box, through dense layers."""
        images, count = boxes.shape[:2]
        number = jnp.where(valid, jnp.arange(images)[:, None], -1)  # of no image: zeros
        regions = jnp.concatenate([number[..., None].astype(jnp.float32), boxes], axis=-1)
        side = self.pool_side
        x = roi_max_pool(maps[0], regions.reshape(-1, 5), (side, side), 1 / self.stride)
        x = x.reshape(images, count, -1)
        for i, width in enumerate(self.hidden, 1):
            layer = nn.Dense(width, dtype=self.dtype, kernel_init=torch_uniform, name=f"fc{i}")
            x = nn.relu(layer(x))
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        return x


_variant = functools.partial(
    make_variant,
    year=2015,
    task="detection",
    paper="Ren et al., Faster R-CNN: towards real-time object detection with region proposal "
    "networks",
)
_vgg = functools.partial(_variant, FasterRCNNOnMaps, input_shape=(600, 1000, 3))

# Multiply-adds without RoIAlign's products, as in papers.
VARIANTS = {
    "faster_rcnn_vgg16": _vgg(137_078_239, 225_573_931_008, num_classes=20),
    "faster_rcnn_vgg16_coco": _vgg(
        138_316_573, 225_964_634_112, num_classes=80, anchor_sizes=(64, 128, 256, 512)
    ),
    "faster_rcnn_resnet50_fpn": _variant(
        FasterRCNN, 41_755_286, 134_379_721_216, 106_240, num_classes=90, input_shape=(800, 800, 3)
    ),
}

DEVIATIONS = (
    Deviation(
        "faster_rcnn_vgg16*",
        "Anchors from a box (0, 0, 15, 15) whose last pixel counts; boxes with 1 added to sides.",
        "py-faster-rcnn so; torchvision counts from edge to edge.",
        "torchvision's anchors and boxes. RoI max pooling rounds twice, as in both.",
    ),
    Deviation(
        "faster_rcnn_vgg16*",
        "The first stage has a softmax over background and object.",
        "torchvision has one logistic score.",
        "Two scores, of which the difference is the logit: the same probability.",
    ),
    Deviation(
        "faster_rcnn_resnet50_fpn, mask_rcnn_resnet50_fpn",
        "BatchNorm of the backbone is frozen.",
        "torchvision's FrozenBatchNorm2d keeps scale and bias as buffers, so that 53,120 "
        "parameters do not count; weights for COCO have an epsilon of 0.",
        "As there, with 1e-5.",
    ),
)
