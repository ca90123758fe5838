"""Targets that move, against pictures of them that OpenCV moves."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.data import geometry as g
from flaxcnn.data.targets import IGNORED, Boxes, Keypoints, Mask, has_places, move

SIZE = HEIGHT, WIDTH = 60, 80
OUT = (50, 70)
BOXES = np.float32([[10, 12, 30, 25], [40, 30, 75, 55], [2, 40, 9, 58], [0, 0, 0, 0]])
VALID = np.array([True, True, True, False])
CORNERS = jnp.asarray([[20, 3], [55, 4], [79, 50], [2, 47]], jnp.float32)
MATRICES = {
    "flip": g.centered(g.scaling(-1, 1), SIZE),
    "turn": g.compose(g.centered(g.rotation(25), SIZE), g.translation(-9, -4)),
    "mirrored slant": g.compose(g.centered(g.scaling(1.3, -0.8), SIZE), g.shearing(0.3, 0.1)),
    "perspective": g.perspective(CORNERS, SIZE),
    "away": g.translation(-38.5, 300),
}
move_on = jax.jit(move, static_argnames="size")


def warp(picture, matrix, size, **kwargs):
    """By OpenCV, which measures from the centre of the first pixel."""
    to_centres = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    on_centres = to_centres @ np.float64(matrix) @ np.linalg.inv(to_centres)
    return cv2.warpPerspective(picture, on_centres, size[::-1], **kwargs)


def draw_box(box):
    left, top, right, bottom = box.astype(int)
    picture = np.zeros(SIZE, np.float32)
    picture[top:bottom, left:right] = 1
    return picture


@pytest.mark.parametrize("name", MATRICES)
def test_a_box_is_around_what_it_was_around(name):
    matrix = MATRICES[name]
    area = (BOXES[:, 2:] - BOXES[:, :2]).prod(1)
    boxes = Boxes(BOXES, VALID, np.arange(4, dtype=np.int32), crowd=~VALID, area=area)
    moved = jax.device_get(move_on(boxes, matrix, size=OUT))
    np.testing.assert_array_equal(moved.labels, np.arange(4))
    np.testing.assert_array_equal(moved.crowd, ~VALID)
    for i, box in enumerate(BOXES):
        picture = warp(draw_box(box), matrix, (400, 400))  # beyond the borders below and right
        seen = picture[: OUT[0], : OUT[1]]
        assert moved.valid[i] == (seen > 0.5).any()
        if not moved.valid[i]:
            assert (moved.boxes[i] == 0).all() and moved.area[i] == 0
            continue
        left, top, right, bottom = moved.boxes[i]
        assert 0 <= left < right <= OUT[1] and 0 <= top < bottom <= OUT[0]
        rows, columns = (np.flatnonzero((seen > 0.5).any(axis)) for axis in (1, 0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert (moved.boxes[i] <= [*np.add(extent[:2], 1), *np.add(extent[2:], 9)]).all()
        if np.isclose(picture.sum(), seen.sum()) and 0 < left and 0 < top:  # nothing was cut off
            np.testing.assert_allclose(moved.boxes[i], extent, atol=1.3)
            np.testing.assert_allclose(moved.area[i], picture.sum(), rtol=0.08)


def test_a_box_cut_at_the_borders_keeps_its_share_of_the_area():
    boxes = Boxes(np.float32([[10, 10, 30, 30]] * 3), np.ones(3, bool), np.zeros(3, np.int32))
    boxes = boxes.replace(area=np.float32([400, 200, 0]))
    moved = move(boxes, g.compose(g.translation(-15, -20), g.scaling(2, 2)), SIZE)
    np.testing.assert_array_equal(moved.boxes, [[0, 0, 30, 20]] * 3)
    np.testing.assert_allclose(moved.area, [600, 300, 0])


def test_less_than_a_pixel_of_a_box_is_none():
    boxes = Boxes(np.float32([[10, 10, 30, 30]]), np.ones(1, bool), np.zeros(1, np.int32))
    for left, valid in ((-29, True), (-29.01, False), (-31, False), (-200, False)):
        moved = move(boxes, g.translation(left, 0), SIZE)
        np.testing.assert_array_equal(moved.valid, [valid])
        np.testing.assert_array_equal(moved.boxes, [[0, 10, 1, 30] if valid else [0] * 4])


@pytest.mark.parametrize("name", MATRICES)
def test_keypoints_are_where_opencv_moves_them(name):
    matrix = MATRICES[name]
    points = np.float32([[12, 20], [50, 22], [30.5, 50], [44, 3], [70, 41]])
    visible = np.array([True, True, True, True, False])
    moved = move_on(Keypoints(points, visible, pairs=((0, 1), (3, 4))), matrix, size=OUT)
    expected = cv2.perspectiveTransform(np.float64(points)[None], np.float64(matrix))[0]
    if name in ("flip", "mirrored slant"):
        expected, visible = expected[[1, 0, 2, 4, 3]], visible[[1, 0, 2, 4, 3]]
    inside = (expected >= 0).all(1) & (expected <= OUT[::-1]).all(1)
    np.testing.assert_array_equal(moved.visible, visible & inside)
    expected[~(visible & inside)] = 0
    np.testing.assert_allclose(moved.points, expected, atol=1e-3)


def test_a_point_on_the_border_is_there_after_a_flip():
    points = Keypoints(np.float32([[0, 0], [WIDTH, HEIGHT]]), np.ones(2, bool))
    moved = move(points, MATRICES["flip"], SIZE)
    np.testing.assert_array_equal(moved.points, [[WIDTH, 0], [0, HEIGHT]])
    assert moved.visible.all()


@pytest.mark.parametrize("name", MATRICES)
def test_a_mask_is_opencvs(name):
    blocks = np.random.default_rng(0).integers(0, 20, (6, 8), dtype=np.uint8)
    classes = np.kron(blocks, np.ones((10, 10), np.uint8))
    moved = move_on(Mask(classes), MATRICES[name], size=OUT).classes
    assert moved.shape == OUT and moved.dtype == np.uint8
    expected = warp(
        classes, MATRICES[name], OUT, flags=cv2.INTER_NEAREST, borderValue=(IGNORED,) * 4
    )
    assert (np.asarray(moved) == expected).mean() > 0.98  # OpenCV's coordinates are in 1/32 pixel


def test_what_has_no_place_stays():
    label, mask = np.int32(3), Mask(np.zeros(SIZE, np.uint8))
    targets = {"label": label, "seen": [mask, None], "pair": (1.5, label)}
    moved = move(targets, MATRICES["turn"], OUT)
    assert moved["label"] is label and moved["pair"] == (1.5, label) and moved["seen"][1] is None
    assert moved["seen"][0].classes.shape == OUT
    assert has_places(targets) and has_places(mask)
    assert not has_places({"label": label, "more": [None, ()]})
