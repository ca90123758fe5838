"""YOLOv2: loss and boxes (Redmon and Farhadi 2017, arXiv:1612.08242).

A network's output is float32 [N, rows, columns, A * (5 + K)]: for each of A priors tx, ty, tw, th,
the logit of objectness, then K class logits, as in Darknet's region layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxcnn.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    decode_priors,
    encode_priors,
    match_priors,
    paired_iou,
)
from flaxcnn.data.targets import Boxes
from flaxcnn.tasks.detection.truth import find_crowded, find_objects, take_matched

Array = jax.Array
Size = tuple[int, int]  # height, width


def split_priors(outputs: Array, count: int) -> tuple[Array, Array, Array]:
    """[N, R, C, A * (5 + K)] to boxes [N, R, C, A, 4], objectness [..., A], classes [..., A, K]."""
    numbers = outputs.reshape(*outputs.shape[:3], count, -1)
    return numbers[..., :4], numbers[..., 4], numbers[..., 5:]


def best_overlap(guess: Array, targets: Boxes) -> Array:
    """The highest IoU of each box [N, R, C, A, 4] with any object, [N, R, C, A]; no gradient."""
    flat = lax.stop_gradient(guess).reshape(len(guess), -1, 4)
    iou = box_iou(flat, jnp.asarray(targets.boxes))
    best = jnp.where(find_objects(targets)[:, None], iou, 0).max(-1)
    return best.reshape(guess.shape[:-1])


def loss(
    outputs: Array,
    targets: Boxes,
    *,
    size: Size,
    priors: np.ndarray,
    ignore_threshold: float = 0.6,
    object_weight: float = 5.0,
    empty_weight: float = 1.0,
) -> Array:
    """The sum over cells and priors, float32 [N].

    The paper has no equation; this is what Darknet's region layer takes the gradient of (2016, with
    `rescore=1`, `bias_match=1`). An object belongs to the cell of its centre and the prior with the
    highest IoU of sides (the first of two in one place, there the last). There, half the squares of
    the four coordinates, (sigmoid(tx), sigmoid(ty), tw, th), times 2 minus the share of the image
    that the object covers; `object_weight` times half the square of objectness less the IoU of the
    predicted box, which gets no gradient; cross-entropy of classes. Elsewhere `empty_weight` times
    half the square of objectness, unless the predicted box overlaps with an object by more than
    `ignore_threshold` or lies in a crowd. Left out: boxes are pulled to the priors in Darknet's
    first 12,800 images.

    Args:
        outputs: float32 [N, R, C, A * (5 + K)].
        targets: `Boxes` [N, M] in pixels of an image of `size`.
        size: (height, width).
        priors: widths and heights [A, 2] in pixels.
        ignore_threshold: IoU above which an object is no mistake.
        object_weight: `object_scale`.
        empty_weight: `noobject_scale`.
    """
    values, objectness, classes = split_priors(outputs, len(priors))
    guess = lax.stop_gradient(decode_priors(values, jnp.asarray(priors), size))
    grid = outputs.shape[1], outputs.shape[2]
    boxes, labels = jnp.asarray(targets.boxes), jnp.asarray(targets.labels)
    (owner,) = jax.vmap(lambda b, v: match_priors(b, v, [priors], [grid], size))(
        boxes, find_objects(targets)
    )
    true, responsible = take_matched(boxes, owner), owner >= 0

    chance = jax.nn.sigmoid(objectness)
    place = jnp.concatenate([jax.nn.sigmoid(values[..., :2]), values[..., 2:]], axis=-1)
    error = jnp.square(place - encode_priors(true, jnp.asarray(priors), size)).sum(-1)
    weight = 2 - box_area(true) / (size[0] * size[1])
    of_object = object_weight * jnp.square(chance - paired_iou(guess, true))
    label = jax.nn.one_hot(take_matched(labels, owner), classes.shape[-1], dtype=classes.dtype)
    of_class = optax.softmax_cross_entropy(classes, label)  # whose gradient is no scatter
    known = responsible | is_ignored(guess, targets, ignore_threshold)
    return (
        jnp.where(responsible, (weight * error + of_object) / 2 + of_class, 0)
        + jnp.where(known, 0, empty_weight * jnp.square(chance) / 2)
    ).sum((1, 2, 3))


def is_ignored(guess: Array, targets: Boxes, threshold: float) -> Array:
    """Which boxes [N, R, C, A, 4] say nothing wrong where they say that there is an object."""
    crowded = find_crowded(guess.reshape(len(guess), -1, 4), targets)
    return (best_overlap(guess, targets) > threshold) | crowded.reshape(guess.shape[:-1])


def decode(outputs: Array, *, size: Size, priors: np.ndarray) -> tuple[Array, Array]:
    """Boxes float32 [N, P, 4] in pixels, cut at the borders, and scores [N, P, K]; P = R * C * A.

    A score is objectness times the softmax of classes. For `boxes.detect`, of each image.
    """
    values, objectness, classes = split_priors(outputs, len(priors))
    boxes = clip_boxes(decode_priors(values, jnp.asarray(priors), size), size)
    scores = jax.nn.sigmoid(objectness)[..., None] * jax.nn.softmax(classes)
    return boxes.reshape(outputs.shape[0], -1, 4), scores.reshape(
        outputs.shape[0], -1, scores.shape[-1]
    )
