"""Windows in an image's pixels, what a place sees, and digits found on real canvases."""

import functools
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, avg_pool, max_pool
from flaxcnn.models.alexnet import DenseHeadNetwork, classify_maps
from flaxcnn.tasks.detection.sliding_window import detect_by_window

GUIDE = Path(__file__).parents[3] / "docs" / "detection.md"


class Spots(nn.Module):
    """A 4x8 window at each 2x4 pixels; its classes: a dark middle, nothing, a bright middle."""

    @nn.compact
    def __call__(self, images, *, train):
        middle = avg_pool(images[:, 1:-1, 2:-2], (2, 4), (2, 4))
        ring = (32 * avg_pool(images, (4, 8), (2, 4)) - 8 * middle) / 24
        contrast = 40 * (middle - ring)
        return jnp.concatenate([-contrast - 24, 0 * contrast, contrast - 24], axis=-1)


def draw_spots():
    """Of three images the first has two spots of the window's size, the second one twice as large.

    18x40 by 0.48 is 8.6x19.2, and 8x20 the nearest size of whole strides: there a window is
    4 * 18 / 8 = 9 pixels high and 8 * 40 / 20 = 16 wide.
    """
    images = np.zeros((3, 18, 40, 1), np.float32)
    images[0, 5:7, 14:18] = 1
    images[0, 11:13, 30:34] = -2
    images[1, 2:7, 20:28] = 1
    return images


def find_spots(images, **given):
    given = {"window_size": (4, 8), "background": 1, "max_outputs": 3, **given}
    return jax.jit(functools.partial(detect_by_window, Spots(), {}, **given))(images)


def test_windows_are_found_where_they_are_at_each_scale():
    found = find_spots(draw_spots(), scales=(1, 0.48))
    assert found.valid.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert found.boxes.dtype == jnp.float32
    np.testing.assert_allclose(found.boxes[0], [[28, 10, 36, 14], [12, 4, 20, 8], [0] * 4])
    np.testing.assert_allclose(found.boxes[1, 0], [16, 0, 32, 9])
    sure = 1 / (1 + np.exp(-16.0))
    np.testing.assert_allclose(found.scores[0], [1, sure, 0], rtol=1e-6)
    assert found.labels.tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]


@pytest.mark.slow
def test_scales_are_merged_and_thresholds_hold():
    images = draw_spots()
    count = functools.partial(jnp.count_nonzero, axis=1)
    twice = {"scales": (1, 1), "max_outputs": 5}
    assert count(find_spots(images, **twice).valid).tolist() == [2, 0, 0]
    assert count(find_spots(images, iou_threshold=1.0, **twice).valid).tolist() == [4, 0, 0]
    assert count(find_spots(images, score_threshold=1 - 1e-7).valid).tolist() == [1, 0, 0]
    last = find_spots(images, background=-2)  # the middle one of three
    assert last.valid.tolist() == find_spots(images).valid.tolist()
    nothing = find_spots(images, background=None)
    assert nothing.labels[2].tolist() == [1, 1, 1]  # a class like the others
    assert nothing.valid[2].all()


class Unpadded(DenseHeadNetwork):
    """Convolutions without borders, for images of 16x16: last maps of 4x4."""

    @nn.compact
    def __call__(self, images, *, train):
        x = max_pool(nn.relu(Conv(16, 5, padding=0, name="conv1")(images)), (2, 2), (2, 2))
        x = nn.relu(Conv(32, 3, padding=0, name="conv2")(x))
        return classify_maps(self, x, train=train, hidden=nn.Dense)


def make_networks(classes):
    """A classifier of 16x16 images, and the same sliding."""
    classifier = Unpadded(num_classes=classes, hidden=(64,), map_side=4, dropout=0.0)
    return classifier, classifier.clone(window=4)


def test_a_place_scores_what_the_classifier_says_of_the_crop():
    classifier, slides = make_networks(4)
    images = np.random.default_rng(0).normal(size=(2, 20, 24, 1)).astype(np.float32) * 20
    variables = jax.jit(functools.partial(classifier.init, train=False))(
        jax.random.key(0), images[:, :16, :16]
    )
    find = functools.partial(
        detect_by_window,
        slides,
        window_size=(16, 16),
        background=3,
        iou_threshold=1.0,
        score_threshold=0.0,
        max_outputs=16,
    )
    found = jax.tree.map(np.asarray, jax.jit(find)(variables, images))
    assert found.valid.sum(1).tolist() == [15, 15]  # 3 x 5 places, 2 pixels apart
    crops = []
    for image, boxes in zip(images, found.boxes[:, :15].astype(int), strict=True):
        crops += [image[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]
    classify = jax.jit(functools.partial(classifier.apply, train=False))
    logits = np.asarray(classify(variables, np.stack(crops)), float)
    expected = softmax(logits, axis=-1)[:, :3].reshape(2, 15, 3)
    assert np.ptp(expected.max(-1)) > 0.05
    np.testing.assert_allclose(found.scores[:, :15], expected.max(-1), rtol=1e-4)
    assert (found.labels[:, :15] == expected.argmax(-1)).all()


class Plain(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return images.mean((1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Plain()}, r"it is made with create_model\(\.\.\., window=\.\.\.\)"),
        ({"window_size": (8, 8)}, "window_size is 8x8, of which the network classifies 3x1 places"),
        ({"background": 3}, "background is 3, and the network has 3 classes"),
        ({"scales": (0.25,)}, "at scale 0.25 images of 8x16 are smaller than the window, 4x8"),
        ({"scales": ()}, "scales is empty"),
    ],
)
def test_mistakes_are_named(changes, message):
    given = {"model": Spots(), "window_size": (4, 8), "background": 1, **changes}
    with pytest.raises(UserError, match=message):
        detect_by_window(variables={}, images=jnp.zeros((1, 8, 16, 1)), **given)


def paste(digits, rng, side, sizes):
    """A canvas with a digit of 8x8 in each quarter, resized: its boxes, which of `digits` it is."""
    canvas, boxes, chosen = np.zeros((side, side, 1), np.float32), [], []
    for corner in np.ndindex(2, 2):
        size, index = int(rng.choice(sizes)), int(rng.integers(len(digits)))
        y, x = (int(rng.integers(side // 2 - size + 1)) + side // 2 * c for c in corner)
        canvas[y : y + size, x : x + size] = resize(digits[index], size)
        boxes.append([x, y, x + size, y + size])
        chosen.append(index)
    return canvas, np.array(boxes), np.array(chosen)


@functools.partial(jax.jit, static_argnums=1)
def resize(digit, size):
    return jax.image.resize(digit, (size, size, 1), "cubic")


def cut_windows(digits, labels, count, rng):
    """Windows of 16x16 and their classes: a digit at most 1 pixel off, or 10, the background."""
    windows, classes = [], []
    while len(windows) < count:
        canvas, boxes, chosen = paste(digits, rng, 80, (8, 16, 16, 16, 32))
        small = boxes[:, 2] - boxes[:, 0] == 16
        near = np.concatenate(
            [box[:2] + rng.integers(-1, 2, (3, 2)) for box in boxes[small]]
            + [box[:2] + rng.integers(-14, 15, (3, 2)) for box in boxes]
            + [rng.integers(0, 65, (2, 2))]
        )
        for x, y in np.clip(near, 0, 64):
            off = np.where(small, np.abs(boxes[:, :2] - (x, y)).max(1), 99)
            if off.min() <= 1 or off.min() >= 4:
                windows.append(canvas[y : y + 16, x : x + 16])
                classes.append(labels[chosen[off.argmin()]] if off.min() <= 1 else 10)
    return np.stack(windows), np.array(classes)


@pytest.mark.slow
def test_digits_on_a_canvas_are_found_at_two_scales():
    """Real digits, 16x16 and 32x32, that training has not seen; the example of the guide."""
    digits, labels = load_digits(return_X_y=True)
    digits = (digits.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    windows, classes = cut_windows(digits[:1400], labels[:1400], 16000, rng)
    classifier, slides = make_networks(11)
    variables = classifier.init(jax.random.key(0), windows[:1], train=False)
    steps = 1000
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def step(variables, state, images, classes):
        def loss(variables):
            logits: Any = classifier.apply(variables, images, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    for _ in range(steps):
        batch = rng.integers(len(windows), size=64)
        variables, state = step(variables, state, windows[batch], classes[batch])

    drawn = [paste(digits[1400:], rng, 80, (16, 32)) for _ in range(25)]
    images, truth, chosen = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    names = {"slides": slides, "variables": variables, "images": images}
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(example, names)
    found = jax.tree.map(np.asarray, names["found"])
    sides = truth[..., 2] - truth[..., 0]
    off = np.abs(found.boxes[:, :, None] - truth[:, None]).max(-1)  # [25, K, 4]
    near = found.valid[..., None] & (off <= sides[:, None] / 8)
    right = (near & (found.labels[..., None] == labels[1400:][chosen][:, None])).any(1)
    assert min(right[sides == side].mean() for side in (16, 32)) > 0.8  # of 50 each, about
    assert near.any(-1).sum() > 0.75 * found.valid.sum()
