import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from flaxcnn.analysis.sanity import (
    order_tiles,
    rank_correlation,
    replacement_curve,
    shuffle_parameters,
)
from flaxcnn.errors import UserError


class Tile(nn.Module):
    """The score of class 0 is the mean of the first 2x2 tile; class 1 always has 0."""

    @nn.compact
    def __call__(self, x, train):
        score = x[:, :2, :2].mean((1, 2))
        return jnp.concatenate([score, 0 * score], 1)


def test_curve_falls_where_the_tile_is_replaced():
    images = np.ones((2, 4, 4, 1), np.float32)
    heat = np.zeros((2, 4, 4))
    heat[0, 0, 0], heat[1, 3, 3] = 1, 1  # right of the first image, wrong of the second
    ranks = order_tiles(heat, 2)
    assert ranks[0].tolist() == [[0, 1], [2, 3]] and ranks[1, 1, 1] == 0
    classes = jnp.array([0, 0])
    curves = replacement_curve(Tile(), {}, images, 0 * images, classes, ranks, steps=4)
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(curves[0], [sigmoid, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(curves[1], [sigmoid, sigmoid, 0.5, 0.5, 0.5], rtol=1e-6)
    with pytest.raises(UserError, match="tiles of 3 pixels do not divide images of 4x4"):
        order_tiles(heat, 3)


def test_rank_correlation_is_spearmans():
    rng = np.random.RandomState(0)
    first = rng.randint(0, 5, (3, 6, 6)).astype(np.float32)  # with many equal values
    second = first + rng.randn(3, 6, 6)
    expected = [
        scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
        for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(first, second), expected, rtol=1e-6)


def test_shuffling_permutes_each_parameter():
    kernel = jnp.arange(12.0).reshape(3, 4)
    variables = {
        "params": {"a": {"kernel": kernel}, "b": {"kernel": kernel}},
        "batch_stats": {"a": {"mean": kernel}},
    }
    shuffled = shuffle_parameters(variables, jax.random.key(0), ["b"])
    np.testing.assert_array_equal(shuffled["params"]["a"]["kernel"], kernel)
    np.testing.assert_array_equal(shuffled["batch_stats"]["a"]["mean"], kernel)
    other = np.asarray(shuffled["params"]["b"]["kernel"])
    assert other.shape == (3, 4) and (other != kernel).any()
    np.testing.assert_array_equal(np.sort(other.ravel()), kernel.ravel())
