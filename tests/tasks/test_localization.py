"""Localization: IoU, the loss, the figures, and a network that learns four images by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from overfit import overfit

from flaxcnn.boxes import paired_iou
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError
from flaxcnn.tasks.localization import Localization
from flaxcnn.tasks.task import Examples, Setting

TASK = Localization(("cat", "dog"), (20, 40), box_weight=10.0)
JITTED = jax.jit(paired_iou)


def make_targets(boxes, labels, valid=None):
    boxes = np.float32(boxes)[:, None]
    valid = np.ones(len(boxes), bool) if valid is None else np.array(valid)
    return Boxes(boxes, valid[:, None], np.int32(labels)[:, None])


def outputs_for(boxes, labels):
    """What the network must say for this: boxes as shares, counted from the middle half."""
    shares = np.float32(boxes) / [40, 20, 40, 20] - [0.25, 0.25, 0.75, 0.75]
    return np.concatenate([20 * np.eye(2)[labels], shares], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("one", "other", "iou"),  # the first three as in torchvision's test of `box_iou`
    [
        ((0, 0, 100, 100), (0, 0, 50, 50), 0.25),
        ((0, 0, 50, 50), (200, 200, 300, 300), 0.0),
        ((0, 0, 100, 100), (0, 0, 100, 100), 1.0),
        ((0, 0, 10, 10), (5, 5, 15, 15), 1 / 7),
        ((8, 0, 2, 10), (0, 0, 10, 10), 0.0),  # its sides are in the wrong order
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),
    ],
)
def test_iou(one, other, iou):
    one, other = np.float32(one), np.float32(other)
    np.testing.assert_allclose(paired_iou(one, other), iou, rtol=1e-6)
    np.testing.assert_allclose(JITTED(one, other), iou, rtol=1e-6)


def test_the_loss_is_cross_entropy_and_smooth_l1():
    boxes, labels = [[4, 2, 24, 16], [0, 0, 40, 20]], [0, 1]
    outputs = outputs_for(boxes, labels)
    outputs[0, 2] += 0.06  # left, 0.06 of the width: quadratic
    outputs[1, 3] -= 0.3  # top, 0.3 of the height: linear
    outputs[:, :2] = [[1, 2], [0, 3]]
    find_losses = jax.jit(TASK.losses)
    losses = find_losses(outputs, make_targets(boxes, labels))
    # Cross-entropy log(1 + e), log(1 + e^-3); smooth L1 0.06^2 / 0.2 and 0.3 - 0.05 of four sides.
    expected = [1.3132617 + 10 * 0.018 / 4, 0.0485874 + 10 * 0.25 / 4]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    lost = make_targets(boxes, labels, valid=[False, True])
    expected[0] = 1.3132617
    np.testing.assert_allclose(find_losses(outputs, lost), expected, rtol=1e-5)


def test_figures_and_report():
    boxes = [[0, 0, 20, 20], [10, 0, 30, 20], [0, 0, 40, 20]]
    said = [[0, 0, 20, 10], [20, 0, 40, 20], [0, 0, 40, 20]]  # IoU 1/2, 1/3, 1
    outputs = jnp.asarray(outputs_for(said, [0, 1, 0]))
    targets = make_targets(boxes, [0, 1, 1])
    measured = jax.jit(TASK.measure)(outputs, targets)
    np.testing.assert_allclose(measured["iou"], [1 / 2, 1 / 3, 1], rtol=1e-5)
    np.testing.assert_array_equal(measured["accuracy"], [1, 1, 0])
    np.testing.assert_array_equal(measured["localized"], [1, 0, 1])
    np.testing.assert_array_equal(measured["localization_accuracy"], [1, 0, 0])
    arrays = jax.jit(lambda x, y: {**TASK.predict(x), **TASK.expected(y)})(outputs, targets)
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    np.testing.assert_allclose(arrays["box"], said, atol=1e-4)
    report = TASK.report({}, arrays)
    np.testing.assert_allclose(report["mean_iou"], (1 / 2 + 1 / 3 + 1) / 3, rtol=1e-5)
    assert report["localization_accuracy"] == pytest.approx(1 / 3)
    cat, dog = report["classes"]
    assert (cat["images"], cat["accuracy"]) == (1, 1) and (dog["images"], dog["accuracy"]) == (
        2,
        0.5,
    )
    assert dog["localized"] == 0.5 and "IoU >= 0.5" in TASK.format(report)
    images = np.zeros((3, 20, 40, 1), np.uint8)
    examples = Examples(arrays, ["a", "b", "c"], "test", lambda indices: images[indices])
    figure = TASK.draw("boxes.png", examples)
    assert [a.get_title() for a in figure.axes[:2]] == ["dog, IoU 0.33", "cat, IoU 0.50"]
    assert len(figure.axes[0].patches) == 2


def test_answers_go_back_to_the_image_and_are_drawn():
    answer = jax.tree.map(
        lambda x: np.asarray(x)[0], TASK.answer(outputs_for([[4, 2, 24, 16]], [1]))
    )
    matrix = np.array([[2, 0, -4], [0, 2, 0], [0, 0, 1]], np.float32)
    fitted = TASK.fit_answer(answer, matrix, (40, 40))
    np.testing.assert_allclose(fitted["box"], [4, 4, 40, 32], atol=1e-4)
    (entry,) = TASK.describe(fitted, 1)
    assert entry["class"] == "dog" and TASK.format_entry(entry) == "100.00%  dog  (4, 4, 40, 32)"
    drawn = TASK.annotate(np.zeros((40, 40, 1), np.uint8), fitted)
    assert drawn.shape == (40, 40, 3) and drawn[18, 4].any() and not drawn[18, 1].any()
    assert TASK.describe({**fitted, "box": np.full(4, np.nan)}, 5) == []


def test_mistakes_are_told_in_one_line():
    with pytest.raises(UserError, match=r"needs outputs \[N, 6\], 2 classes and a box"):
        TASK.check(jax.ShapeDtypeStruct((1, 2), jnp.float32))
    with pytest.raises(UserError, match="needs data with a box each"):
        Localization.make(Setting((), (20, 40, 3)))
    with pytest.raises(UserError, match="box_weight must be above 0"):
        Localization.make(Setting(("a", "b"), (20, 40, 3)), box_weight=0)
    with pytest.raises(UserError, match="needs data with a box each"):
        TASK.losses(jnp.zeros((2, 6)), np.int32([0, 1]))


def test_four_images_are_learnt_by_heart():
    boxes = [[2, 2, 10, 12], [20, 4, 38, 18], [4, 8, 30, 16], [30, 0, 40, 8]]
    images = np.zeros((4, 20, 40, 1), np.float32)
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[top:bottom, left:right] = 1
    targets = make_targets(boxes, [0, 1, 1, 0])
    loss, outputs = overfit(TASK, images, targets, steps=600)
    assert loss < 1e-2
    assert jax.jit(TASK.measure)(outputs, targets)["iou"].min() > 0.9
