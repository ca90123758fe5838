"""Colours and filters against Pillow, OpenCV and the standard library."""

import colorsys

import cv2
import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from flaxcnn.data.augment import color, filters

BYTE = 1 / 255


def make_image(kind: str) -> np.ndarray:
    """uint8 [24, 32, 3]: "noise", "dim" (little contrast), "flat", "two" (two values)."""
    rng = np.random.default_rng(0)
    if kind == "flat":
        return np.full((24, 32, 3), 77, np.uint8)
    if kind == "two":
        return rng.integers(0, 2, (24, 32, 3)).astype(np.uint8) * 100 + 20
    low, high = (0, 256) if kind == "noise" else (60, 140)
    corners = rng.integers(low, high, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(corners, (32, 24), interpolation=cv2.INTER_LINEAR)


def check(function, amounts, expected: Image.Image, pixels: np.ndarray, bytes_off: float):
    """`function` agrees with Pillow within `bytes_off` (Pillow cuts fractions off)."""
    ours = np.asarray(jax.jit(function)(pixels.astype(np.float32) / 255, *amounts)) * 255
    assert ours.min() >= 0 and ours.max() <= 255
    theirs = np.asarray(expected).reshape(ours.shape)
    assert np.abs(ours - theirs).max() <= bytes_off, np.abs(ours - theirs).max()


@pytest.mark.parametrize("kind", ["noise", "dim", "flat"])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("grey", [False, True])
def test_enhancers_are_pillows(kind, factor, grey):
    pixels = make_image(kind)[..., :1] if grey else make_image(kind)
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    for ours, theirs in [
        (color.brightness, ImageEnhance.Brightness),
        (color.contrast, ImageEnhance.Contrast),
        (color.saturation, ImageEnhance.Color),
        (filters.sharpness, ImageEnhance.Sharpness),
    ]:
        expected = theirs(image).enhance(factor)
        check(ours, [factor], expected, pixels, 1.8)


@pytest.mark.parametrize("kind", ["noise", "dim", "flat", "two"])
@pytest.mark.parametrize("grey", [False, True])
def test_operations_are_pillows(kind, grey):
    pixels = make_image(kind)[..., :1] if grey else make_image(kind)
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    check(color.equalize, [], ImageOps.equalize(image), pixels, 0.01)
    check(color.invert, [], ImageOps.invert(image), pixels, 0.01)
    check(color.autocontrast, [], ImageOps.autocontrast(image), pixels, 1.01)
    for bits in (1, 3, 4, 8):
        expected = ImageOps.posterize(image, bits)
        check(color.posterize, [bits], expected, pixels, 0.01)
    for threshold in (0, 100, 128, 256):
        expected = ImageOps.solarize(image, threshold)
        check(color.solarize, [(threshold - 0.5) / 255], expected, pixels, 0.01)


def test_grayscale_is_pillows():
    pixels = make_image("noise")
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    check(color.grayscale, [], Image.fromarray(np.dstack([grey] * 3)), pixels, 0.6)


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.3, 0.5, 1.0])
def test_hue_is_that_of_colorsys(turns):
    image = make_image("noise").astype(np.float32) / 255
    image[0, :3] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]
    ours = np.asarray(jax.jit(color.hue)(image, turns))
    for pixel, shifted in zip(image.reshape(-1, 3), ours.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
        np.testing.assert_allclose(shifted, colorsys.hsv_to_rgb((h + turns) % 1, s, v), atol=1e-5)


def test_gamma_is_a_power():
    image = make_image("noise").astype(np.float32) / 255
    image[0, 0] = 0
    np.testing.assert_allclose(color.gamma(image, 0.6), np.float64(image) ** 0.6, rtol=1e-5)


@pytest.mark.parametrize(("sigma", "radius"), [(0.4, 2), (1.3, 4), (3.0, 9)])
def test_blur_is_opencvs(sigma, radius):
    image = make_image("noise").astype(np.float32) / 255
    side = 2 * radius + 1
    expected = cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(filters.gaussian_blur(image, sigma, radius), expected, atol=1e-5)


def test_elastic_is_scipys():
    image = make_image("noise").astype(np.float32) / 255
    displacement = np.random.default_rng(1).uniform(-1, 1, (24, 32, 2)).astype(np.float32)
    ours = filters.elastic(image, displacement, sigma=2.0, strength=6.0)
    moved = 6.0 * np.stack(
        [
            ndimage.gaussian_filter(displacement[..., i], 2.0, mode="mirror", truncate=3.0)
            for i in (0, 1)
        ]
    )
    assert np.abs(moved).max() > 1  # it does move
    rows, columns = np.mgrid[:24, :32]
    for channel in range(3):
        expected = ndimage.map_coordinates(
            image[..., channel], [rows + moved[1], columns + moved[0]], order=1, mode="mirror"
        )
        np.testing.assert_allclose(ours[..., channel], expected, atol=1e-4)
