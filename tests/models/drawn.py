"""A network with drawn weights, for the tests that compare it with a forward pass in NumPy."""

import jax
import numpy as np

import flaxcnn
from flaxcnn.models import create_model


def draw_network(name, images, **kwargs):
    """The named network and variables for images like these: NumPy arrays.

    Kernels are normal with variance 2 / fan-in, scales and variances uniform in 0.8..1.2, the rest
    normal with deviation 0.1.
    """
    model = create_model(name, **kwargs)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            values = rng.standard_normal(leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        elif path[-1].key in ("scale", "var"):
            values = rng.uniform(0.8, 1.2, leaf.shape)
        else:
            values = 0.1 * rng.standard_normal(leaf.shape)
        return values.astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, init_shapes(model, images))


def init_shapes(model, images):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def init(model, images):
    """Initial variables, those of `jit(model.init)` (test_initialize.py)."""
    return flaxcnn.init(model, jax.random.key(0), images.shape[1:])


def evaluate(model, variables, images):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def relative_error(ours, expected):
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()
