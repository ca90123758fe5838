"""Mask R-CNN: Faster R-CNN with a mask of each object.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, ICCV 2017 (arXiv:1703.06870), section 3 and Figure 4;
torchvision's form.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, ConvTranspose
from flaxcnn.models._residual import he_normal
from flaxcnn.models._two_stage import Size, align_on_pyramid
from flaxcnn.models._variant import make_variant
from flaxcnn.models.faster_rcnn import FasterRCNN

Array = jax.Array


class MaskRCNN(FasterRCNN, kw_only=True):
    """Mask R-CNN on a feature pyramid: [N, H, W, C] -> `TwoStageOutputs` with masks.

    Attributes:
      mask_features: of the 3x3 convolutions on the 14x14 features of a box; the last also of the
        transposed one to 28x28.
    """

    mask_features: tuple[int, ...] = (256, 256, 256, 256)

    def draw_masks(
        self, maps: tuple[Array, ...], boxes: Array, valid: Array, image_size: Size
    ) -> Array:
        """Logits of masks in boxes [N, R, 4]: [N, R, 28, 28, 1 + num_classes]."""
        x = align_on_pyramid(maps[:-1], boxes, valid, 14, image_size)
        shape, x = x.shape[:2], x.reshape(-1, *x.shape[2:])
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=he_normal)
        for i, features in enumerate(self.mask_features, 1):
            x = nn.relu(conv(features, 3, padding=1, name=f"mask_conv{i}")(x))
        enlarge = ConvTranspose(
            self.mask_features[-1],
            2,
            2,
            transpose_kernel=True,
            dtype=self.dtype,
            kernel_init=he_normal,
            name="mask_enlarge",
        )
        x = conv(1 + self.num_classes, 1, name="mask_classifier")(nn.relu(enlarge(x)))
        return x.reshape(*shape, *x.shape[1:]).astype(jnp.float32)


VARIANTS = {
    "mask_rcnn_resnet50_fpn": make_variant(
        MaskRCNN,
        44_401_393,
        187_586_351_616,
        106_240,
        num_classes=90,
        input_shape=(800, 800, 3),
        paper="He et al., Mask R-CNN",
        year=2017,
        task="detection",
    ),
}
