"""Region proposals: how likely an anchor holds an object, and how the object differs from it.

Ren, He, Girshick, Sun: Faster R-CNN: towards real-time object detection with region proposal
networks, NIPS 2015 (arXiv:1506.01497), section 3.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.boxes import clip_boxes, decode_boxes, nms
from flaxcnn.layers import Conv

Array = jax.Array

LEAST_SIDE = 1e-3  # pixels; what is smaller is no proposal

normal = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """Scores and box offsets for `num_anchors` anchors at each place of maps of any network.

    Attributes:
      num_anchors: A.
      softmax: two scores for each anchor, background and object, as in the paper, of which the
        difference is put out; all backgrounds before all objects, as in the authors' code.
      dtype: of the computation.
    """

    num_anchors: int
    softmax: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Maps [N, H, W, C] of equal channels to float32 logits [N, P] and offsets [N, P, 4] each.

        P = H * W * A, the anchors of a place together (`boxes.make_anchors`).
        """
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=normal)
        hidden = conv(maps[0].shape[-1], 3, padding=1, name="conv")
        score = conv(self.num_anchors * (1 + self.softmax), 1, name="scores")
        locate = conv(self.num_anchors * 4, 1, name="boxes")
        logits, offsets = [], []
        for x in maps:
            x = nn.relu(hidden(x))
            places = x.shape[1] * x.shape[2] * self.num_anchors
            scores = score(x).astype(jnp.float32)
            if self.softmax:
                background, objects = jnp.split(scores, 2, axis=-1)
                scores = objects - background
            logits.append(scores.reshape(-1, places))
            offsets.append(locate(x).astype(jnp.float32).reshape(-1, places, 4))
        return logits, offsets


class Proposals(NamedTuple):
    """Boxes that may hold an object, the likeliest first."""

    boxes: Array  # float32 [N, R, 4]
    valid: Array  # bool [N, R]


def propose(
    logits: Sequence[Array],
    offsets: Sequence[Array],
    anchors: Sequence[np.ndarray],
    size: tuple[int, int],
    *,
    before: int,
    count: int,
    iou_threshold: float,
) -> Proposals:
    """Makes `count` proposals for images of `size` from what `RPNHead` says of each map's anchors.

    Of each map the `before` likeliest are moved, cut at the image's border, and suppressed by those
    of the same map that they overlap with; the likeliest of all that are left are kept, as in
    torchvision's `RegionProposalNetwork`. No gradient goes through.
    """
    scores, boxes, levels = [], [], []
    for level, (score, offset, anchor) in enumerate(zip(logits, offsets, anchors, strict=True)):
        score, offset = jax.lax.stop_gradient((score, offset))
        score, order = jax.lax.top_k(score, min(before, score.shape[1]))
        offset = jnp.take_along_axis(offset, order[..., None], axis=1)
        moved = decode_boxes(offset, jnp.asarray(anchor)[order])
        scores.append(jax.nn.sigmoid(score))
        boxes.append(clip_boxes(moved, size))
        levels.append(np.full(order.shape[1], level, np.int32))
    labels = jnp.asarray(np.concatenate(levels))

    def keep(boxes: Array, scores: Array) -> Proposals:
        large = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(-1)
        kept = nms(boxes, scores, iou_threshold, count, labels=labels, valid=large)
        return Proposals(boxes[kept.indices] * kept.valid[:, None], kept.valid)

    return jax.vmap(keep)(jnp.concatenate(boxes, 1), jnp.concatenate(scores, 1))
