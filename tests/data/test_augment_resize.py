"""Resizing against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.augment.resize import resize_image


@pytest.mark.parametrize("size", [(20, 30), (21, 40), (9, 64), (50, 33), (3, 4), (1, 90)])
def test_it_is_pillows_bilinear(size):
    image = np.random.default_rng(0).random((21, 30, 3), dtype=np.float32)
    ours = jax.jit(resize_image, static_argnums=1)(image, size)
    height, width = size
    for channel in range(3):
        one = Image.fromarray(image[..., channel])  # of mode F: floats
        expected = one.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours[..., channel], np.asarray(expected), atol=2e-6)


def test_the_same_size_is_the_same_image():
    image = jnp.asarray(np.random.default_rng(0).random((7, 5, 1), dtype=np.float32))
    assert resize_image(image, (7, 5)) is image


def test_a_constant_stays_within_the_range():
    white = np.ones((37, 53, 1), np.float32)
    resized = jax.jit(resize_image, static_argnums=1)(white, (16, 70))
    np.testing.assert_allclose(resized, 1, atol=1e-6)
