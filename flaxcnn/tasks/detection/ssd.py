"""SSD: loss and boxes (Liu et al. 2016, arXiv:1512.02325).

A network's outputs are offsets float32 [N, P, 4] from P default boxes, coded as by
`boxes.encode_boxes`, and class logits [N, P, K + 1], of which the first is background.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxcnn.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, match_default_boxes
from flaxcnn.boxes.coding import BOX_WEIGHTS, Weights
from flaxcnn.data.targets import Boxes
from flaxcnn.tasks.detection.truth import find_crowded, find_objects, take_matched

Array = jax.Array
Size = tuple[int, int]  # height, width
Outputs = tuple[Array, Array]


def loss(
    outputs: Outputs,
    targets: Boxes,
    *,
    anchors: np.ndarray,
    threshold: float = 0.5,
    negatives: float = 3.0,
    weights: Weights = BOX_WEIGHTS,
) -> Array:
    """Equations 1 to 3, float32 [N]: smooth L1 of offsets plus cross-entropy of classes.

    Divided by the number of default boxes that are matched (`boxes.match_default_boxes`); 0 for an
    image without objects, as in the paper (Caffe and torchvision count over the batch). Of those
    not matched only the hardest count, those of the highest loss, `negatives` times as many as
    are matched (section 2.2); none that lie in a crowd.

    Args:
        outputs: offsets float32 [N, P, 4] and logits [N, P, K + 1].
        targets: `Boxes` [N, M] in pixels.
        anchors: default boxes float32 [P, 4] in pixels, as of `boxes.make_default_boxes`.
        threshold: IoU from which a default box is matched.
        negatives: how many to one that is matched.
        weights: 1 / variances of the offsets.
    """
    offsets, logits = outputs
    boxes, places = jnp.asarray(targets.boxes), jnp.asarray(anchors)[None]
    matches = jax.vmap(lambda iou, valid: match_default_boxes(iou, valid, threshold))(
        box_iou(boxes, places), find_objects(targets)
    )
    matched = matches >= 0
    want = encode_boxes(take_matched(boxes, matches), places, weights)
    of_boxes = optax.huber_loss(offsets, want).sum(-1)  # smooth L1
    labels = take_matched(jnp.asarray(targets.labels), matches) + 1
    label = jax.nn.one_hot(jnp.where(matched, labels, 0), logits.shape[-1], dtype=logits.dtype)
    of_classes = optax.softmax_cross_entropy(logits, label)  # whose gradient is no scatter
    count = matched.sum(-1)
    crowded = find_crowded(jnp.broadcast_to(places, offsets.shape), targets)
    hard = _find_hardest(of_classes, ~matched & ~crowded, (negatives * count).astype(jnp.int32))
    total = jnp.where(matched, of_boxes, 0) + jnp.where(matched | hard, of_classes, 0)
    return total.sum(-1) / jnp.maximum(count, 1)


def _find_hardest(losses: Array, eligible: Array, count: Array) -> Array:
    """The `count` [N] highest of losses [N, P] among those eligible; of equal ones the first."""
    order = jnp.argsort(jnp.where(eligible, -lax.stop_gradient(losses), jnp.inf), stable=True)
    rank = jnp.argsort(order)
    return eligible & (rank < count[:, None])


def decode(
    outputs: Outputs, *, size: Size, anchors: np.ndarray, weights: Weights = BOX_WEIGHTS
) -> tuple[Array, Array]:
    """Boxes float32 [N, P, 4] in pixels, cut at the borders, and scores [N, P, K].

    A score is the softmax over classes and background, without that of background. For
    `boxes.detect`, of each image.
    """
    offsets, logits = outputs
    boxes = decode_boxes(offsets, jnp.asarray(anchors)[None], weights)
    return clip_boxes(boxes, size), jax.nn.softmax(logits)[..., 1:]
