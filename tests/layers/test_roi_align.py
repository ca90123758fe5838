"""RoIAlign against NumPy in float64, sample by sample, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flaxcnn.errors import UserError
from flaxcnn.layers import roi_align


def sample(features, y, x):
    """Bilinear, as in roi_align_kernel.cpp: 0 more than one feature beyond the map."""
    height, width, channels = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    low, left = int(y), int(x)
    high, right = min(low + 1, height - 1), min(left + 1, width - 1)
    top = (1 - x + left) * features[low, left] + (x - left) * features[low, right]
    bottom = (1 - x + left) * features[high, left] + (x - left) * features[high, right]
    return (1 - y + low) * top + (y - low) * bottom


def align(features, boxes, size, scale, samples, aligned):
    pooled = np.zeros((len(boxes), *size, features.shape[-1]))
    for pool, box in zip(pooled, boxes, strict=True):
        x1, y1, x2, y2 = box * scale - 0.5 * aligned
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        for i, j, k, m in np.ndindex(*size, samples, samples):
            y = y1 + (i + (k + 0.5) / samples) * height / size[0]
            x = x1 + (j + (m + 0.5) / samples) * width / size[1]
            pool[i, j] += sample(features, y, x) / samples**2
    return pooled


def draw(boxes):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 9, 11, 3))
    first = rng.uniform(-20, 80, (2, boxes, 2))  # some begin beyond the map, or are turned
    drawn = np.concatenate([first, first + rng.uniform(-3, 60, (2, boxes, 2))], axis=-1)
    return features.astype(np.float32), drawn.astype(np.float32)


@pytest.mark.parametrize(("size", "samples", "aligned"), [((3, 2), 1, False), ((2, 3), 2, True)])
def test_values(size, samples, aligned):
    features, boxes = draw(70)  # more than are computed at once
    valid = np.arange(70)[None] % 5 != np.array([[0], [1]])
    pooled = jax.jit(
        lambda x, boxes, valid: roi_align(x, boxes, size, 1 / 8, samples, aligned, valid)
    )(features, boxes, valid)
    for ours, image, of_image, counts in zip(pooled, features, boxes, valid, strict=True):
        wide = image.astype(float), of_image.astype(float)
        expected = align(*wide, size, 1 / 8, samples, aligned) * counts[:, None, None, None]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_the_gradient_is_the_transpose_and_products_alone():
    """As deterministic on GPU as products are: nothing is gathered, nothing scattered."""
    features, boxes = draw(70)
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=(2, 70, 2, 2, 3)).astype(np.float32)
    direction = rng.normal(size=features.shape)

    @jax.jit
    def pull(features):
        return jax.vjp(lambda x: roi_align(x, boxes, (2, 2), 1 / 8), features)[1](cotangent)[0]

    moved = [
        align(d, b.astype(float), (2, 2), 1 / 8, 2, False)
        for d, b in zip(direction, boxes, strict=True)
    ]
    expected = (np.stack(moved) * cotangent).sum()
    np.testing.assert_allclose((pull(features) * direction).sum(), expected, rtol=1e-4)
    text = export.export(pull, platforms=["cuda"])(features).mlir_module()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.scatter" not in text and "stablehlo.gather" not in text


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="sampling_ratio is 0, and must be at least 1"):
        roi_align(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 1, 4)), (2, 2), sampling_ratio=0)
