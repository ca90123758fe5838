"""Crops by IoU and mosaics move boxes with their images: rectangles of known colours are found."""

import jax
import numpy as np
import pytest

from flaxcnn.data.augment import augmented_shape, make_augment, read_policy
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError

COUNT, HEIGHT, WIDTH = 12, 40, 56


def make_batch():
    """Black images with a red and a green rectangle; padding, and the first image has none."""
    rng = np.random.default_rng(0)
    images = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    boxes = np.zeros((COUNT, 3, 4), np.float32)
    valid = np.zeros((COUNT, 3), bool)
    for n in range(1, COUNT):
        for i in range(2):
            left, top = 2 + 28 * i + rng.integers(0, 4), rng.integers(2, 8)
            right, bottom = left + rng.integers(12, 20), top + rng.integers(14, 26)
            images[n, top:bottom, left:right, i] = 255
            boxes[n, i] = left, top, right, bottom
            valid[n, i] = True
    labels = np.tile(np.arange(3, dtype=np.int32), (COUNT, 1))
    return images, Boxes(boxes, valid, labels)


def augmented(*policy):
    images, targets = make_batch()
    shape = (HEIGHT, WIDTH, 3)
    assert augmented_shape(policy, shape) == shape
    augment = jax.jit(make_augment(policy, shape, 1))
    return jax.tree.map(np.asarray, augment(jax.random.key(1), 0, images, targets))


def check_place(image, box, channel):
    """A box that counts is around what is seen of its colour inside and beside it."""
    x1, y1, x2, y2 = box
    rows, columns = np.nonzero(image[..., channel] > 0.75)
    near = (columns > x1 - 2) & (columns < x2 + 1) & (rows > y1 - 2) & (rows < y2 + 1)
    rows, columns = rows[near], columns[near]
    found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(box, found, atol=2.5)


@pytest.mark.slow
def test_crops_overlap_with_an_object():
    images, targets = augmented(("random_iou_crop", (0.5,)))
    before, boxes = make_batch()
    cropped = 0
    np.testing.assert_array_equal(images[0], before[0] / 255)  # no object: the whole image
    assert not targets.valid[0].any()
    for n in range(1, COUNT):
        for i in np.nonzero(targets.valid[n])[0]:
            check_place(images[n], targets.boxes[n, i], i)
        if not np.allclose(targets.boxes[n], boxes.boxes[n]):
            cropped += 1
            sides = targets.boxes[n, :, 2:] - targets.boxes[n, :, :2]
            assert sides.prod(1).max() >= 0.5 * HEIGHT * WIDTH  # IoU of 0.5 with the part
    assert 3 <= cropped < COUNT - 1


@pytest.mark.slow
def test_mosaics_show_four_images():
    images, targets = augmented(("mosaic", 0.7))
    before, boxes = make_batch()
    assert targets.boxes.shape == (COUNT, 12, 4)
    alone = 0
    for n in range(COUNT):
        if np.allclose(images[n], before[n] / 255):
            alone += 1
            np.testing.assert_allclose(targets.boxes[n, :3], boxes.boxes[n])
            assert targets.valid[n].tolist() == [*boxes.valid[n], *[False] * 9]
            continue
        for i in np.nonzero(targets.valid[n])[0]:
            assert boxes.valid[(n + i // 3) % COUNT, i % 3]
            assert targets.labels[n, i] == i % 3
            check_place(images[n], targets.boxes[n, i], i % 3)
        seen = (images[n, ..., :2] > 0.75).sum()
        sides = targets.boxes[n, :, 2:] - targets.boxes[n, :, :2]
        assert abs(sides.prod(1).sum() - seen) < 0.25 * seen + 30  # nothing seen has no box
    assert 0 < alone < COUNT // 2


def test_boxes_of_which_little_is_left_do_not_count():
    boxes = Boxes(
        np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32), np.ones(2, bool), np.zeros(2, int)
    )
    shift = np.array([[1, 0, -6], [0, 1, 0], [0, 0, 1]], np.float32)
    valid = [
        boxes.replace(least_share=share).moved(shift, (20, 20)).valid.tolist()
        for share in (0.0, 0.5)
    ]
    assert valid == [[True, True], [False, True]]
    images = np.zeros((16, 20, 20, 3), np.uint8)
    boxes = boxes.replace(boxes=np.array([[7, 7, 13, 13], [4, 0, 14, 10]], np.float32))
    targets = jax.tree.map(lambda x: np.broadcast_to(x, (16, *x.shape)), boxes)
    some, whole = (
        make_augment([("random_resized_crop", (0.7, 0.7))], (20, 20, 3), 1, least_share=share)(
            jax.random.key(0), 0, images, targets
        )[1]
        for share in (0.0, 0.999)
    )
    places = np.asarray(some.boxes)
    uncut = ((places > 0.01) & (places < 19.99)).all(-1)
    assert 0 < uncut.sum() < some.valid.sum()
    np.testing.assert_array_equal(whole.valid, uncut)


def test_what_scenes_refuse():
    with pytest.raises(UserError, match="nothing can follow mosaic"):
        read_policy([("mosaic",), ("flip",)])
    with pytest.raises(UserError, match="overlaps must be a tuple"):
        read_policy([("random_iou_crop", 0.5)])
    augment = make_augment([("random_iou_crop",)], (8, 8, 3), 1)
    with pytest.raises(UserError, match="need targets that are boxes"):
        augment(jax.random.key(0), 0, np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32))
