"""Preprocessing against timm's transforms (tests/reference/make_preprocessing.py) and formulas."""

import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.images import fit_image
from flaxcnn.errors import UserError
from flaxcnn.weights import preprocessing as module
from flaxcnn.weights.preprocessing import Preprocessing, reads_bgr

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "preprocessing.json").read_text())
PLAIN = Preprocessing((2, 2), (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))


def draw(height, width):
    """The image that the golden values are of."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("case", GOLDEN["images"], ids=lambda c: c["config"]["crop_mode"])
def test_an_image_is_what_timm_makes_of_it(case):
    preprocessing = Preprocessing.from_config(case["config"])
    made = preprocessing.fit(draw(*case["image"]))
    assert made.flatten().tolist() == case["pixels"]
    np.testing.assert_allclose(preprocessing(made)[0, 0], case["first"], atol=2e-6)
    assert preprocessing(made).dtype == np.float32


@pytest.mark.parametrize("case", GOLDEN["images"][:4], ids=lambda c: c["config"]["crop_mode"])
def test_it_is_written_in_timms_words(case):
    preprocessing = Preprocessing.from_config(case["config"])
    written = json.loads(json.dumps(preprocessing.to_config()))
    assert written == {**case["config"], "input_size": list(case["config"]["input_size"])}
    assert Preprocessing.from_config(written) == preprocessing


def test_a_file_is_read_as_its_pixels(tmp_path):
    preprocessing = Preprocessing.from_config(GOLDEN["images"][0]["config"])
    Image.fromarray(draw(37, 53)).save(tmp_path / "image.png")
    np.testing.assert_array_equal(
        preprocessing.read(tmp_path / "image.png"), preprocessing.fit(draw(37, 53))
    )
    grey = preprocessing.for_channels(1)
    assert grey.mean == pytest.approx((0.449,)) and grey.std == pytest.approx((0.226,))
    assert grey.read(tmp_path / "image.png").shape == (8, 8, 1)
    with pytest.raises(UserError, match=r"image\.png: image files have 1 or 3 channels"):
        preprocessing.for_channels(4).read(tmp_path / "image.png")


def test_without_a_resize_another_size_is_refused(tmp_path):
    Image.fromarray(draw(37, 53)).save(tmp_path / "image.png")
    fixed = Preprocessing((37, 53), (0.5,) * 3, (0.5,) * 3, 1.0, "area", "")
    np.testing.assert_array_equal(fixed.read(tmp_path / "image.png"), draw(37, 53))
    with pytest.raises(UserError, match=r"image\.png is 53x37 and .* 8x8"):
        Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, 1.0, "area", "").read(tmp_path / "image.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_area_is_how_a_run_resizes(channels):
    image = draw(37, 53)[:, :, :channels]
    preprocessing = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, 1.0, "area", "pad")
    plain = image[:, :, 0] if channels == 1 else image
    np.testing.assert_array_equal(
        preprocessing.fit(image), fit_image(plain, (8, 8), "pad", channels)
    )


def test_keras_caffe_mode_in_rgb_and_0_to_1():
    """keras.applications.imagenet_utils: RGB to BGR, minus the mean of blue, green, red."""
    preprocessing = Preprocessing.from_config({"mode": "caffe", "input_size": 2})
    image = draw(2, 2)
    expected = np.float32(image[..., ::-1]) - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_allclose(preprocessing(image)[..., ::-1], expected, rtol=1e-5, atol=1e-4)
    assert reads_bgr({"mode": "caffe"}) and reads_bgr({"channels": "BGR"})
    assert not reads_bgr({"mode": "tf"}) and not reads_bgr({})
    scaled = Preprocessing.from_config({"mode": "tf"})(np.array([[[0, 51, 255]]], np.uint8))
    np.testing.assert_allclose(scaled, [[[-1, -0.6, 1]]], atol=1e-6)


def test_floats_are_0_to_1_and_others_are_warned_of_once():
    module._warn_of_range.cache_clear()
    image = draw(2, 2)
    ours = PLAIN(np.float32(image) / np.float32(255))
    np.testing.assert_allclose(ours, PLAIN(image), rtol=1e-6)
    on_device = jax.jit(PLAIN)(jnp.asarray(image)[None])
    np.testing.assert_allclose(on_device[0], ours, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match=r"far above 1: pixels must be uint8, or .* in 0\.\.1"):
        wrong = PLAIN(np.float32(image))
    np.testing.assert_allclose(wrong, (np.float32(image) - PLAIN.mean) / PLAIN.std, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PLAIN(np.float32(image))  # once


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear"),
        ({"crop_mode": "corner"}, "preprocessing cannot be read: KeyError.'corner'"),
        ({"mean": "many"}, "preprocessing cannot be read"),
        ({"std": [0, 1, 1]}, "std above 0"),
        ({"crop_pct": -1}, "crop must be a share above 0"),
        ({"input_size": [3, 0, 8]}, "image_size must be .height, width."),
    ],
)
def test_a_wrong_config_is_one_line(config, line):
    with pytest.raises(UserError, match=line) as error:
        Preprocessing.from_config(config)
    assert "\n" not in str(error.value)
