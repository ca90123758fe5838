"""YOLOv1: loss and boxes (Redmon et al. 2016, arXiv:1506.02640).

A network's output is float32 [N, rows, columns, B * 5 + K]: in each cell B boxes of five numbers
(x, y, the roots of width and height, confidence), coded as by `boxes.encode_cells`, then K class
probabilities. They are linear: a square pulls all of them to their targets.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.boxes import clip_boxes, decode_cells, encode_cells, match_cells, paired_iou
from flaxcnn.boxes.geometry import to_centers
from flaxcnn.data.targets import Boxes
from flaxcnn.tasks.detection.truth import find_crowded, find_objects, take_matched

Array = jax.Array
Size = tuple[int, int]  # height, width


def _split(outputs: Array, num_classes: int) -> tuple[Array, Array, Array]:
    """Boxes [N, R, C, B, 4], confidences [N, R, C, B] and class probabilities [N, R, C, K]."""
    numbers = outputs[..., :-num_classes].reshape(*outputs.shape[:3], -1, 5)
    return numbers[..., :4], numbers[..., 4], outputs[..., -num_classes:]


def loss(
    outputs: Array,
    targets: Boxes,
    *,
    size: Size,
    num_classes: int,
    coord_weight: float = 5.0,
    empty_weight: float = 0.5,
) -> Array:
    """Equation 3: float32 [N], a sum over cells and boxes.

    A cell is responsible for the object whose centre it holds (the first of several, as in
    Darknet), and of its boxes the one of the highest IoU; where none overlaps with the object, the
    nearest in squares of (x, y, width, height), as in Darknet. The confidence to reach is that IoU,
    which gets no gradient. Boxes that lie in a crowd may have any confidence.

    Args:
        outputs: float32 [N, R, C, B * 5 + num_classes].
        targets: `Boxes` [N, M] in pixels of an image of `size`.
        size: (height, width).
        num_classes: K.
        coord_weight: lambda_coord, of the squares of coordinates.
        empty_weight: lambda_noobj, of the confidences of boxes that are not responsible.
    """
    values, confidence, classes = _split(outputs, num_classes)
    grid = outputs.shape[1], outputs.shape[2]
    boxes, labels = jnp.asarray(targets.boxes), jnp.asarray(targets.labels)
    owner = jax.vmap(lambda b, v: match_cells(b, v, grid, size))(boxes, find_objects(targets))
    true = take_matched(boxes, owner)[..., None, :]  # [N, R, C, 1, 4]
    guess = lax.stop_gradient(decode_cells(values, size))
    iou = paired_iou(guess, true)
    occupied = owner >= 0
    responsible = occupied[..., None] & _find_nearest(guess, true, iou, size)

    error = jnp.square(values - encode_cells(true, size)).sum(-1)
    of_boxes = jnp.where(responsible, coord_weight * error + jnp.square(confidence - iou), 0)
    crowded = find_crowded(guess.reshape(len(guess), -1, 4), targets).reshape(iou.shape)
    of_empty = jnp.where(responsible | crowded, 0, empty_weight * jnp.square(confidence))
    label = jax.nn.one_hot(take_matched(labels, owner), num_classes, dtype=classes.dtype)
    of_classes = jnp.where(occupied, jnp.square(classes - label).sum(-1), 0)
    return (of_boxes + of_empty).sum((1, 2, 3)) + of_classes.sum((1, 2))


def _find_nearest(guess: Array, true: Array, iou: Array, size: Size) -> Array:
    """Which box of each cell is the nearest to its object: bool [N, R, C, B], one of B."""
    sides = jnp.asarray([size[1], size[0]] * 2, guess.dtype).reshape(1, 1, 1, 1, 4)
    away = jnp.square((to_centers(guess) - to_centers(true)) / sides).sum(-1)
    nearness = jnp.where((iou > 0).any(-1, keepdims=True), iou, -away)
    best = jnp.argmax(nearness, axis=-1)
    return jax.nn.one_hot(best, iou.shape[-1], dtype=bool)


def decode(outputs: Array, *, size: Size, num_classes: int) -> tuple[Array, Array]:
    """Boxes float32 [N, P, 4] in pixels, cut at the borders, and scores [N, P, K]; P = R * C * B.

    A score is confidence times class probability (equation 1), neither below 0; as they are linear
    it may be above 1. For `boxes.detect`, of each image.
    """
    values, confidence, classes = _split(outputs, num_classes)
    boxes = clip_boxes(decode_cells(values, size), size).reshape(outputs.shape[0], -1, 4)
    scores = jnp.maximum(confidence, 0)[..., None] * jnp.maximum(classes, 0)[..., None, :]
    return boxes, scores.reshape(outputs.shape[0], -1, num_classes)
