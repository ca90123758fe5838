"""Warps against OpenCV, SciPy, PIL and NumPy: other people's samplers and solvers."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from flaxcnn.data import geometry as g

HEIGHT, WIDTH = 21, 30
STATIC = ("size", "nearest", "fill")
WARPS = [jax.jit(warp, static_argnames=STATIC) for warp in (g.warp_image, g.warp_axes)]
warp_image, warp_axes = WARPS
# Ours measures from the corner of the first pixel, OpenCV, SciPy and NumPy from its centre.
TO_CENTRES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])


@pytest.fixture
def image():
    return np.random.default_rng(0).random((HEIGHT, WIDTH, 3), dtype=np.float32)


def some_matrix(seed: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    return g.centered(
        g.compose(
            g.rotation(rng.uniform(-180, 180)),
            g.shearing(*rng.uniform(-0.5, 0.5, 2)),
            g.scaling(*rng.uniform(0.6, 1.6, 2)),
            g.translation(*rng.uniform(-9, 9, 2)),
        ),
        (HEIGHT, WIDTH),
    )


def on_centres(matrix) -> np.ndarray:
    return TO_CENTRES @ np.float64(matrix) @ np.linalg.inv(TO_CENTRES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fill", "mode"), [("reflect", "mirror"), ("edge", "nearest"), (0.25, "grid-constant")]
)
def test_a_warp_is_scipys(image, seed, fill, mode):
    matrix = some_matrix(seed)
    ours = warp_image(image, matrix, fill=fill)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    points = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    x, y, _ = np.linalg.inv(on_centres(matrix)) @ points
    for channel in range(3):
        expected = ndimage.map_coordinates(
            image[..., channel], [y, x], order=1, mode=mode, cval=0.25
        )
        np.testing.assert_allclose(ours[..., channel].reshape(-1), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("fill", "border"), [("reflect", cv2.BORDER_REFLECT_101), ("edge", cv2.BORDER_REPLICATE)]
)
def test_a_warp_to_another_size_is_opencvs(image, fill, border):
    smooth = cv2.GaussianBlur(image, (0, 0), 3)  # OpenCV rounds coordinates to 1/32 pixel
    matrix = some_matrix(5)
    expected = cv2.warpPerspective(smooth, on_centres(matrix), (24, 18), borderMode=border)
    ours = warp_image(smooth, matrix, size=(18, 24), fill=fill)
    np.testing.assert_allclose(ours, expected, atol=5e-3)


@pytest.mark.parametrize("degrees", [0, 88, 10, -33, 170])
def test_nearest_rotation_is_pils_in_any_dtype(degrees):
    mask = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    # PIL takes the transform back, in the corner's coordinates.
    matrix = g.centered(g.rotation(degrees), (HEIGHT, WIDTH))
    back = np.linalg.inv(np.float64(matrix))[:2].reshape(-1)
    size = (WIDTH, HEIGHT)
    expected = Image.fromarray(mask[..., 0]).transform(size, Image.Transform.AFFINE, back)
    ours = warp_image(mask, matrix, nearest=True, fill=0)
    assert ours.dtype == np.uint8
    assert (np.asarray(ours[..., 0]) == np.asarray(expected)).mean() > 0.995  # ties may differ
    turned = Image.fromarray(mask[..., 0]).rotate(degrees)  # and the angle means the same
    assert (np.asarray(ours[..., 0]) == np.asarray(turned)).mean() > 0.98


def test_flips_and_whole_pixel_moves_are_exact(image):
    flip = g.centered(g.scaling(-1, 1), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(warp_image(image, flip), image[:, ::-1])
    np.testing.assert_array_equal(warp_axes(image, flip), image[:, ::-1])
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    for warp in WARPS:
        for nearest in (True, False):
            moved = warp(image, g.compose(flip, g.translation(3, -4)), nearest=nearest)
            np.testing.assert_array_equal(
                moved, padded[:, ::-1][8 : 8 + HEIGHT, 1 : 1 + WIDTH], err_msg=str(warp)
            )


@pytest.mark.parametrize("fill", ["reflect", "edge", 0.5])
@pytest.mark.parametrize("nearest", [True, False])
def test_the_separable_warp_is_the_general_one(image, fill, nearest):
    matrix = g.compose(g.scaling(-0.71, 1.43), g.translation(26.2, -3.3))
    kwargs = {"fill": fill, "nearest": nearest, "size": (16, 40)}
    np.testing.assert_allclose(
        warp_axes(image, matrix, **kwargs), warp_image(image, matrix, **kwargs), atol=1e-5
    )


def test_a_warp_far_outside_stays_in_range(image):
    for fill in ("reflect", "edge"):
        far = warp_image(image, g.translation(1000.3, -777.7), fill=fill)
        assert np.isfinite(far).all() and image.min() <= far.min() and far.max() <= image.max()
    np.testing.assert_array_equal(warp_image(image, g.translation(1000, 0), fill=0.5), 0.5)
    row = warp_image(image[:1], g.translation(0, 3))  # nothing to reflect in
    np.testing.assert_array_equal(row, image[:1])


def test_perspective_is_opencvs():
    corners = np.float32([[2, 3], [27, -1], [31, 20], [-2, 17]])
    full = np.float32([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])
    ours = np.float64(g.perspective(jnp.asarray(corners), (HEIGHT, WIDTH)))
    expected = cv2.getPerspectiveTransform(full, corners)
    np.testing.assert_allclose(ours / ours[2, 2], expected, atol=1e-4)


def test_points_and_boxes_are_opencvs():
    corners = jnp.asarray([[2, 3], [27, -1], [31, 20], [-2, 17]], jnp.float32)
    matrix = g.compose(some_matrix(2), g.perspective(corners, (HEIGHT, WIDTH)))
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 20, (5, 2)).astype(np.float32)
    expected = cv2.perspectiveTransform(points[None].astype(np.float64), np.float64(matrix))[0]
    np.testing.assert_allclose(g.warp_points(points, matrix), expected, rtol=1e-4, atol=1e-3)
    boxes = np.concatenate([points, points + rng.uniform(1, 9, (5, 2))], 1).astype(np.float32)
    for box, warped in zip(boxes, g.warp_boxes(boxes, matrix), strict=True):
        left, top, right, bottom = box
        quad = np.float64([[left, top], [right, top], [right, bottom], [left, bottom]])
        quad = cv2.perspectiveTransform(quad[None], np.float64(matrix))[0]
        np.testing.assert_allclose(warped, [*quad.min(0), *quad.max(0)], rtol=1e-4, atol=1e-3)


def test_a_point_moves_with_its_picture():
    # A bright blob's centre of mass is where warp_points says it goes.
    rows, columns = np.mgrid[:60, :80] + 0.5
    blob = np.exp(-((columns - 30) ** 2 + (rows - 25) ** 2) / 20).astype(np.float32)
    matrix = g.centered(g.compose(g.rotation(25), g.translation(4, 3)), (60, 80))
    warped = np.asarray(warp_image(blob[..., None], matrix, fill=0.0))[..., 0]
    centre = np.array([(warped * columns).sum(), (warped * rows).sum()]) / warped.sum()
    expected = g.warp_points(jnp.asarray([[30.0, 25.0]]), matrix)[0]
    np.testing.assert_allclose(centre, expected, atol=0.05)


def test_composition_and_inverse_are_numpys():
    a, b = some_matrix(0), some_matrix(1)
    np.testing.assert_allclose(g.compose(a, b), np.asarray(b) @ np.asarray(a), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(g.invert(a), np.linalg.inv(np.float64(a)), rtol=1e-3, atol=1e-4)
