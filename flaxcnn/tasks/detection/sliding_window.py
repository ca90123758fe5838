"""A classifier slid over a pyramid of images as a detector (Geron 2019, chapter 14).

The classifier has a class for what is no object, "background", which trains like any other. Its
probability's complement is the objectness of a window, and the probability of another class is
objectness times that of the class given that there is an object: the score. Geron adds an output
for objectness instead, which needs a loss of its own. One resolution of the pyramid is one pass of
the network (Sermanet et al. 2014, arXiv:1312.6229).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcnn.boxes import Detections, nms
from flaxcnn.errors import UserError

Array = jax.Array
Size = tuple[int, int]  # height, width

_EXTRA = 1920  # pixels by which sides grow to see the stride: a multiple of 1 to 6, 8, 16, 32


def detect_by_window(
    model: nn.Module,
    variables: Any,
    images: Array,
    *,
    window_size: Size,
    background: int | None,
    scales: Sequence[float] = (1.0,),
    iou_threshold: float = 0.3,
    score_threshold: float = 0.5,
    max_outputs: int = 100,
) -> Detections:
    """Finds objects as large as the window, at each of several scales of the images.

    Each scaled image is a whole number of the network's strides larger than the window, the nearest
    such size, so that windows reach every border. Shapes are static: `jax.jit` takes all but
    `variables` and `images` by `functools.partial`.

    Args:
        model: a classifier that slides, `create_model(..., window=...)`: [N, H, W, C] -> logits
            [N, rows, columns, classes].
        variables: those of the classifier.
        images: float [N, H, W, C], normalised.
        window_size: (height, width) in pixels of the images that the classifier was trained on;
            these must give one place.
        background: the class of what is no object. None: there is none, and `score_threshold`
            alone decides.
        scales: by what the images' sides are multiplied. Objects of twice the window's size are
            found at 0.5.
        iou_threshold: above which a window suppresses a less sure one of any class and scale.
        score_threshold: what is not above it, in 0..1, is no object.
        max_outputs: K.

    Returns:
        `Detections` of K windows for each image: boxes [N, K, 4] in pixels of `images`, scores,
        labels, valid [N, K]. Of equal scores that of the earlier scale, then row, then column.

    Raises:
        UserError: for a network that does not slide, a background that is no class, an image that
            is smaller than the window at some scale, no scales.
    """
    if not scales:
        raise UserError("scales is empty: it must name at least one")
    stride, classes = _measure(model, variables, images, window_size)
    if background is not None and not -classes <= background < classes:
        raise UserError(f"background is {background}, and the network has {classes} classes")
    boxes, logits = [], []
    for scale in scales:
        scaled = _scale(images, scale, window_size, stride)
        places: Any = model.apply(variables, scaled, train=False)
        boxes.append(_place_windows(places.shape[1:3], stride, window_size, scaled, images))
        logits.append(places.reshape(len(images), -1, classes))
    probabilities = jax.nn.softmax(jnp.concatenate(logits, axis=1).astype(jnp.float32))
    if background is not None:
        probabilities = probabilities.at[..., background].set(0)
    windows = jnp.asarray(np.concatenate(boxes))

    def suppress(scores: Array) -> Detections:
        best, labels = scores.max(-1), jnp.argmax(scores, axis=-1).astype(jnp.int32)
        kept = nms(windows, best, iou_threshold, max_outputs, valid=best > score_threshold)
        return Detections(
            jnp.where(kept.valid[:, None], windows[kept.indices], 0),
            kept.scores,
            jnp.where(kept.valid, labels[kept.indices], 0),
            kept.valid,
        )

    return jax.vmap(suppress)(probabilities)


def _measure(
    model: nn.Module, variables: Any, images: Array, window_size: Size
) -> tuple[Size, int]:
    """The pixels from window to window along both axes, and the number of classes; by shapes."""

    def trace(height: int, width: int) -> tuple[int, ...]:
        image = jax.ShapeDtypeStruct((1, height, width, images.shape[-1]), jnp.float32)
        outputs: Any = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
        if getattr(outputs, "ndim", None) != 4:
            raise UserError(
                "the network must give logits of each place, [N, rows, columns, classes]: it is "
                "made with create_model(..., window=...)"
            )
        return outputs.shape

    height, width = window_size
    _, rows, columns, classes = trace(height, width)
    if (rows, columns) != (1, 1):
        raise UserError(
            f"window_size is {height}x{width}, of which the network classifies {rows}x{columns} "
            "places; it must be the size of the classifier's images, which give one"
        )
    _, rows, columns, _ = trace(height + _EXTRA, width + _EXTRA)
    steps = rows - 1, columns - 1
    if any(step < 1 or _EXTRA % step for step in steps):
        raise UserError(f"the network's places are no whole number of pixels apart: {steps}")
    return (_EXTRA // steps[0], _EXTRA // steps[1]), classes


def _scale(images: Array, scale: float, window_size: Size, stride: Size) -> Array:
    """Images [N, H, W, C] resized by about `scale`, to where the last windows end at the border."""
    number, *sides, channels = images.shape
    steps = [
        round((scale * side - window) / step)
        for side, window, step in zip(sides, window_size, stride, strict=True)
    ]
    if min(steps) < 0:
        raise UserError(
            f"at scale {scale} images of {sides[0]}x{sides[1]} are smaller than the window, "
            f"{window_size[0]}x{window_size[1]}"
        )
    axes = zip(window_size, stride, steps, strict=True)
    height, width = (window + step * count for window, step, count in axes)
    return jax.image.resize(images, (number, height, width, channels), "linear")


def _place_windows(
    places: Sequence[int], stride: Size, window_size: Size, scaled: Array, images: Array
) -> np.ndarray:
    """The window of each place, row by row, in pixels of the images: float32 [places, 4]."""
    rows, columns = np.indices(places).reshape(2, -1)
    first = np.stack([columns * stride[1], rows * stride[0]], axis=1)
    corners = np.concatenate([first, first + window_size[::-1]], axis=1)
    factors = np.divide(images.shape[1:3], scaled.shape[1:3])[::-1]
    return (corners * np.tile(factors, 2)).astype(np.float32)
