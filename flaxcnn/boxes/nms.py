"""Non-maximum suppression of fixed size, jitted and vmapped.

Every function is of one image, to be vmapped. The number of boxes kept is fixed; what an image has
fewer of is marked as not valid. Boxes are kept in the order of their scores, of equal scores the
one with the lower index first, and the picks are those of `torchvision.ops.nms` on CPU.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.boxes.geometry import box_iou, paired_iou

Array = jax.Array

_BLOCK = 128  # candidates that are decided in one step
_NONE = -jnp.inf  # the score of what does not count


class Kept(NamedTuple):
    """What suppression keeps, the surest first."""

    indices: Array  # int32 [K], of the boxes given; 0 where not valid
    scores: Array  # float32 [K]; 0 where not valid
    valid: Array  # bool [K]


class Detections(NamedTuple):
    """Objects found in an image, the surest first; zeros where not valid."""

    boxes: Array  # float32 [K, 4]
    scores: Array  # float32 [K]
    labels: Array  # int32 [K]
    valid: Array  # bool [K]


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    max_outputs: int,
    *,
    labels: Array | None = None,
    valid: Array | None = None,
    candidates: int | None = None,
) -> Kept:
    """Keeps the boxes that overlap with no surer one that is kept by more than `iou_threshold`.

    Args:
        boxes: float32 [N, 4].
        scores: float32 [N]. What is minus infinity or not a number is not kept.
        iou_threshold: in 0..1, a Python number: IoU is compared with it in double precision, as in
            torchvision.
        max_outputs: K, how many are kept at most.
        labels: int [N]. Boxes suppress those of their own class alone, as in
            `torchvision.ops.batched_nms` where it does not shift them (its rounding). None: all.
        valid: bool [N], which boxes count; all, if None.
        candidates: how many of the highest scores are looked at; all, if None.

    Returns:
        `Kept` of K boxes.
    """
    counts = scores > _NONE if valid is None else valid & (scores > _NONE)
    sorted_scores, order = _sort(jnp.where(counts, scores, _NONE), candidates)
    sorted_labels = jnp.zeros_like(order) if labels is None else labels[order].astype(jnp.int32)
    threshold = _round_down(iou_threshold)
    return _suppress(boxes[order], sorted_labels, sorted_scores, order, threshold, max_outputs)


def detect(
    boxes: Array,
    scores: Array,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_outputs: int = 100,
    candidates: int | None = None,
    class_agnostic: bool = False,
) -> Detections:
    """From a score of each class for each box to the objects in an image.

    Args:
        boxes: float32 [P, 4], or [P, C, 4] where each class has a box of its own.
        scores: float32 [P, C].
        iou_threshold: above which a box suppresses a less sure one of its class.
        score_threshold: what is not above it is no object.
        max_outputs: K.
        candidates: how many of the P * C scores, the highest, are looked at; all, if None.
        class_agnostic: boxes suppress those of other classes too.

    Returns:
        `Detections` of K objects: of equal scores the one with the lower index in P, then in C.
    """
    classes = scores.shape[-1]
    flat = scores.reshape(-1)
    sorted_scores, order = _sort(jnp.where(flat > score_threshold, flat, _NONE), candidates)
    labels = order % classes
    sorted_boxes = boxes.reshape(-1, 4)[order if boxes.ndim == 3 else order // classes]
    kept = _suppress(
        sorted_boxes,
        jnp.zeros_like(labels) if class_agnostic else labels,
        sorted_scores,
        lax.iota(jnp.int32, len(order)),
        _round_down(iou_threshold),
        max_outputs,
    )
    chosen = jnp.where(kept.valid[:, None], sorted_boxes[kept.indices], 0)
    return Detections(
        chosen, kept.scores, jnp.where(kept.valid, labels[kept.indices], 0), kept.valid
    )


def _sort(scores: Array, count: int | None) -> tuple[Array, Array]:
    """The `count` highest scores [N] and their places, equal ones in the order they have."""
    if count is not None and count < len(scores):
        return lax.top_k(scores, count)
    places = lax.iota(jnp.int32, len(scores))
    negative, order = lax.sort((-scores, places), num_keys=1, is_stable=True)
    return -negative, order


def _round_down(threshold: float) -> np.float32:
    """The largest float32 that is not above a double: what is above one is above the other."""
    nearest = np.float32(threshold)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest


@functools.partial(jax.jit, static_argnames="max_outputs")
def _suppress(
    boxes: Array,
    labels: Array,
    scores: Array,
    indices: Array,
    threshold: np.float32,
    max_outputs: int,
) -> Kept:
    """Greedy suppression of sorted candidates, `_BLOCK` at a time, until K are kept.

    A block is compared with what is kept of those before, and then decided by itself: steps are
    few, nothing is as large as N x N, and what comes after the K-th box is not looked at.
    """
    length = len(scores)
    block = min(_BLOCK, length)
    blocks = -(-length // block)
    rest = blocks * block - length
    boxes = jnp.pad(boxes, ((0, rest), (0, 0))).reshape(blocks, block, 4)
    labels = jnp.pad(labels, (0, rest)).reshape(blocks, block)
    scores = jnp.pad(scores, (0, rest), constant_values=_NONE).reshape(blocks, block)
    slots = lax.iota(jnp.int32, max_outputs)
    earlier = jnp.tri(block, k=-1, dtype=bool)

    def overlap(a: Array, a_labels: Array, b: Array, b_labels: Array) -> Array:
        return (box_iou(a, b) > threshold) & (a_labels[:, None] == b_labels[None])

    def goes_on(state: tuple[Array, ...]) -> Array:
        step, count, *_ = state
        first = scores.at[jnp.minimum(step, blocks - 1), 0].get(mode="promise_in_bounds")
        return (step < blocks) & (count < max_outputs) & (first > _NONE)

    def decide(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, count, kept, kept_boxes, kept_labels = state
        at = (x.at[step].get(mode="promise_in_bounds") for x in (boxes, labels, scores))
        new, new_labels, new_scores = at
        before = overlap(new, new_labels, kept_boxes, kept_labels) & (slots < count)[None]
        alive = (new_scores > _NONE) & ~before.any(-1)
        stays = _decide_block(alive, overlap(new, new_labels, new, new_labels) & earlier)
        place = count + jnp.cumsum(stays, dtype=jnp.int32) - 1
        chosen = stays[None] & (place[None] == slots[:, None])  # [K, block], no scatter
        filled, which = chosen.any(-1), jnp.argmax(chosen, axis=-1).astype(jnp.int32)
        return (
            step + 1,
            count + stays.sum(dtype=jnp.int32),
            jnp.where(filled, step * block + which, kept),
            jnp.where(filled[:, None], new[which], kept_boxes),
            jnp.where(filled, new_labels[which], kept_labels),
        )

    zero = jnp.zeros((), jnp.int32)
    start = (zero, zero, slots * 0, jnp.zeros((max_outputs, 4), boxes.dtype), slots * 0)
    _, count, kept, *_ = lax.while_loop(goes_on, decide, start)
    filled = slots < count
    return Kept(
        jnp.where(filled, indices[kept], 0),
        jnp.where(filled, scores.reshape(-1)[kept], 0),
        filled,
    )


def _decide_block(alive: Array, suppresses: Array) -> Array:
    """Which of the `alive` [B] stay: those that no earlier one that stays overlaps, [B, B].

    What stays is the only solution of the equation below, and the n-th candidate is right after n
    rounds at the latest; there are as many rounds as the longest chain of suppressions.
    """

    def changed(state: tuple[Array, Array]) -> Array:
        return (state[0] != state[1]).any()

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays = state[1]
        return stays, alive & ~(suppresses & stays[None]).any(-1)

    return lax.while_loop(changed, again, again((alive, alive)))[1]


def soft_nms(
    boxes: Array,
    scores: Array,
    max_outputs: int,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    labels: Array | None = None,
    valid: Array | None = None,
) -> Kept:
    """Lowers the scores of boxes that overlap with surer ones (Bodla et al. 2017, figure 2).

    Of boxes [N, 4] the surest is kept, K times, and the scores of the others are multiplied: for
    "linear" by 1 - IoU where IoU is at least `iou_threshold`, for "gaussian" by
    exp(-IoU^2 / sigma). `Kept.scores` are the lowered ones; what is not above `score_threshold` is
    not kept. `labels` and `valid` are those of `nms`. Takes K steps of N each.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method must be 'linear' or 'gaussian', got {method!r}")
    counts = scores > score_threshold if valid is None else valid & (scores > score_threshold)
    places = lax.iota(jnp.int32, len(scores))

    def keep(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.argmax(left).astype(jnp.int32)
        iou = paired_iou(boxes, boxes[best][None])
        if method == "linear":
            factor = jnp.where(iou >= iou_threshold, 1 - iou, 1)
        else:
            factor = jnp.exp(-jnp.square(iou) / sigma)
        if labels is not None:
            factor = jnp.where(labels == labels[best], factor, 1)
        lowered = left * factor
        counts = (lowered > score_threshold) & (places != best)
        return jnp.where(counts, lowered, _NONE), (best, left[best])

    start = jnp.where(counts, scores, _NONE)
    _, (best, score) = lax.scan(keep, start, length=max_outputs)
    found = score > _NONE
    return Kept(jnp.where(found, best, 0), jnp.where(found, score, 0), found)
