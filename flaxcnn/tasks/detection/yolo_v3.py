"""YOLOv3: loss and boxes (Redmon and Farhadi 2018, arXiv:1804.02767).

A network's outputs are a sequence, the finest map first: float32 [N, rows, columns, A * (5 + K)]
each, for each of the map's A priors tx, ty, tw, th, the logit of objectness, then K class logits.
Three maps of strides 8, 16 and 32; two in the tiny form.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxcnn.boxes import box_area, clip_boxes, decode_priors, encode_priors, match_priors
from flaxcnn.data.targets import Boxes
from flaxcnn.tasks.detection.truth import find_objects, take_matched
from flaxcnn.tasks.detection.yolo_v2 import is_ignored, split_priors

Array = jax.Array
Size = tuple[int, int]  # height, width


def loss(
    outputs: Sequence[Array],
    targets: Boxes,
    *,
    size: Size,
    priors: Sequence[np.ndarray],
    ignore_threshold: float = 0.5,
) -> Array:
    """The sum over maps, cells and priors, float32 [N].

    An object belongs to the cell of its centre and, of the priors of all maps, to the one with the
    highest IoU of sides (the first of two in one place; the last in Darknet). There, cross-entropy
    of sigmoid(tx) and sigmoid(ty) and half the squares of tw and th, times 2 minus the share of the
    image that the object covers, and binary cross-entropies of objectness (towards 1) and of each
    class. Elsewhere that of objectness towards 0, unless the predicted box overlaps with an object
    by more than `ignore_threshold` (section 2.1) or lies in a crowd. The gradient is that of
    Darknet's yolo layer; the paper says of coordinates that they have squares.

    Args:
        outputs: each float32 [N, R, C, A * (5 + K)].
        targets: `Boxes` [N, M] in pixels of an image of `size`.
        size: (height, width).
        priors: of each map, widths and heights [A, 2] in pixels.
        ignore_threshold: IoU above which an object is no mistake.
    """
    grids = [(x.shape[1], x.shape[2]) for x in outputs]
    owners = jax.vmap(lambda b, v: match_priors(b, v, priors, grids, size))(
        jnp.asarray(targets.boxes), find_objects(targets)
    )
    of_maps = (
        _map_loss(output, owner, targets, size, jnp.asarray(of_map), ignore_threshold)
        for output, owner, of_map in zip(outputs, owners, priors, strict=True)
    )
    return jnp.stack(list(of_maps)).sum(0)


def _map_loss(
    output: Array, owner: Array, targets: Boxes, size: Size, priors: Array, threshold: float
) -> Array:
    values, objectness, classes = split_priors(output, len(priors))
    guess = lax.stop_gradient(decode_priors(values, priors, size))
    true, responsible = take_matched(jnp.asarray(targets.boxes), owner), owner >= 0
    want = encode_priors(true, priors, size)
    entropy = optax.sigmoid_binary_cross_entropy
    of_place = entropy(values[..., :2], want[..., :2]).sum(-1)
    of_sides = jnp.square(values[..., 2:] - want[..., 2:]).sum(-1) / 2
    weight = 2 - box_area(true) / (size[0] * size[1])
    label = take_matched(jnp.asarray(targets.labels), owner)
    label = jax.nn.one_hot(label, classes.shape[-1], dtype=classes.dtype)
    of_classes = entropy(classes, label).sum(-1)
    found = jax.nn.softplus(-objectness)  # cross-entropy towards 1; towards 0 below
    known = responsible | is_ignored(guess, targets, threshold)
    return (
        jnp.where(responsible, weight * (of_place + of_sides) + found + of_classes, 0)
        + jnp.where(known, 0, jax.nn.softplus(objectness))
    ).sum((1, 2, 3))


def decode(
    outputs: Sequence[Array], *, size: Size, priors: Sequence[np.ndarray]
) -> tuple[Array, Array]:
    """Boxes float32 [N, P, 4] in pixels, cut at the borders, and scores [N, P, K], of all maps.

    A score is objectness times the class's probability, sigmoids both. For `boxes.detect`, of each
    image.
    """
    boxes, scores = [], []
    for output, of_map in zip(outputs, priors, strict=True):
        values, objectness, classes = split_priors(output, len(of_map))
        score = jax.nn.sigmoid(objectness)[..., None] * jax.nn.sigmoid(classes)
        place = clip_boxes(decode_priors(values, jnp.asarray(of_map), size), size)
        boxes.append(place.reshape(len(output), -1, 4))
        scores.append(score.reshape(len(output), -1, score.shape[-1]))
    return jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1)
