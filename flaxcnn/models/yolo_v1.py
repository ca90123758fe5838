"""YOLO: one network says for each cell of a grid which boxes have their centres there.

Redmon, Divvala, Girshick, Farhadi: You only look once: unified, real-time object detection, CVPR
2016 (arXiv:1506.02640), Figure 3. Its first 20 convolutions are trained on ImageNet first, at half
the resolution; then SGD with momentum 0.9 and weight decay 5e-4 for 135 epochs, learning rate 1e-2,
after 75 and 105 a tenth.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, Dropout, max_pool
from flaxcnn.models._backbone import BackboneNetwork, choose_strides
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images, flatten
from flaxcnn.models._network import Network, run_block, run_stages
from flaxcnn.models._variant import make_variant
from flaxcnn.models._yolo import make_unit
from flaxcnn.models.darknet import he_normal

Array = jax.Array

# Figure 3: features and window of the convolutions of each stage; pooling is between them.
STAGES = (
    ((64, 7),),
    ((192, 3),),
    ((128, 1), (256, 3), (256, 1), (512, 3)),
    (*((256, 1), (512, 3)) * 4, (512, 1), (1024, 3)),
    ((512, 1), (1024, 3)) * 2,
)


class Extraction(Network):
    """The 20 convolutions that are trained on ImageNet: [N, H, W, C] -> a tuple of maps.

    Attributes:
      batch_norm: BatchNorm after each convolution, which then has no bias.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    batch_norm: bool = False
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, ...]:
        """Maps images [N, H, W, C] to a tuple of maps."""
        check_images(images, 1, self)
        unit = make_unit(self, train, self.batch_norm)

        def stage(x: Array, index: int) -> Array:
            if index:
                x = max_pool(x, (2, 2), (2, 2), ceil_mode=True)
            for i, (features, size) in enumerate(STAGES[index], 1):
                stride = 2 if size == 7 else 1
                x = unit(x, features, size, f"stage{index + 1}_{i}", stride)
            return x

        stages = {
            f"stage{i + 1}": functools.partial(run_block, self, stage, index=i)
            for i in range(len(STAGES))
        }
        return run_stages(self, images, stages)


class YOLOv1(BackboneNetwork, kw_only=True):
    """YOLO: [N, H, W, C] -> float32 [N, S, S, B * 5 + num_classes].

    Of each cell of a grid of S x S B boxes, each (x, y, w, h, confidence), and the scores of the
    classes, all without an activation; what they mean is the task's to say. S is a 64th of the
    image's sides, or with `downsample=False` a 32nd.

    Attributes:
      boxes_per_cell: B.
      backbone: network with maps of stride 32; "" for the paper's 20 convolutions.
      features: of the 3x3 convolutions on these maps; () for none.
      downsample: the second of them has stride 2.
      hidden: widths of the dense layers before the last one, which tie the network to one size of
        images; None for a 1x1 convolution and any size.
      dropout: of each hidden layer.
      batch_norm: BatchNorm after each convolution, which then has no bias.
      momentum: of BatchNorm, the share of the running averages that a step keeps.
    """

    backbone: str = ""
    boxes_per_cell: int = 2
    features: tuple[int, ...] = (1024, 1024, 1024, 1024)
    downsample: bool = True
    hidden: tuple[int, ...] | None = (4096,)
    dropout: float = 0.5
    batch_norm: bool = False
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images [N, H, W, C] to float32 [N, S, S, boxes_per_cell * 5 + num_classes]."""
        check_images(images, 1, self)
        if self.backbone:
            maps = self.run_backbone(images, train=train)
        else:
            extraction = Extraction(
                num_classes=0,
                batch_norm=self.batch_norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                remat=self.remat,
                momentum=self.momentum,
                name="backbone",
            )
            maps = extraction(images, train=train)
        (x,) = choose_strides(self, images, maps, (32,))
        unit = make_unit(self, train, self.batch_norm)
        for i, features in enumerate(self.features, 1):
            x = unit(x, features, 3, f"head_{i}", 2 if i == 2 and self.downsample else 1)
        outputs = self.boxes_per_cell * 5 + self.num_classes
        if self.hidden is None:
            output = Conv(outputs, 1, dtype=self.dtype, kernel_init=he_normal, name="output")
            return output(x).astype(jnp.float32)
        cells = x.shape[1:3]
        x = flatten(x)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=he_normal)
        for i, width in enumerate(self.hidden, 1):
            x = nn.leaky_relu(dense(width, name=f"fc{i}")(x), 0.1)
            x = Dropout(self.dropout, self.axis_name, name=f"fc{i}_dropout")(x, train=train)
        x = dense(cells[0] * cells[1] * outputs, name="output")(x)
        return x.reshape(-1, *cells, outputs).astype(jnp.float32)


VARIANTS = {
    "yolo_v1": make_variant(
        YOLOv1,
        271_703_550,
        20_285_153_280,
        num_classes=20,
        input_shape=(448, 448, 3),
        paper="Redmon et al., You only look once: unified, real-time object detection",
        year=2015,
        task="detection",
    ),
}

DEVIATIONS = (
    Deviation(
        "yolo_v1",
        "24 convolutions, 4096 hidden values, 2 boxes per cell.",
        "The authors' yolov1.cfg: BatchNorm, a locally connected layer and no hidden one, 3 boxes.",
        "The paper's, with biases and without BatchNorm; `batch_norm=True` for it.",
    ),
    Deviation(
        "yolo_v1",
        "Classes, confidences and boxes of a cell are one vector.",
        "Darknet puts the classes of all cells first, then all confidences, then all boxes.",
        "Box after box (x, y, w, h, confidence), then the classes, of each cell.",
    ),
)
