"""Darknet-19 against a forward pass in NumPy; odd sizes; slopes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from draw import draw_images, draw_weight
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert

# darknet19.cfg from top to bottom: channels and window of each convolution; a bar is a pool.
LAYERS = "32@3 | 64@3 | 128@3 64@1 128@3 | 256@3 128@1 256@3 | 512@3 256@1 512@3 256@1 512@3 | "
LAYERS += "1024@3 512@1 1024@3 512@1 1024@3"


def draw_variables(model, images):
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.asarray(images)
    )
    kinds = {"scale": "gamma", "var": ".var"}
    flat = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = "/".join(path[1:-1]) + "/" + kinds.get(path[-1], path[-1])
        flat[path] = draw_weight(name, leaf.shape, int(np.prod(leaf.shape[:-1])), gain=2.0)
    return traverse_util.unflatten_dict(flat)


def forward(variables, x):
    params, statistics = variables["params"], variables["batch_stats"]
    for i, stage in enumerate(LAYERS.split("|"), 1):
        if i > 1:
            x = layers.max_pool(x, 2, 2, ceil_mode=True)
        for j, layer in enumerate(stage.split(), 1):
            features, size = map(int, layer.split("@"))
            kernel = params[f"stage{i}_conv{j}"]["kernel"]
            assert kernel.shape == (size, size, x.shape[-1], features)
            x = layers.conv2d(x, kernel, padding=size // 2)
            norm = params[f"stage{i}_bn{j}"] | statistics[f"stage{i}_bn{j}"]
            x = layers.batch_norm(x, **norm, epsilon=1e-5)
            x = np.where(x > 0, x, 0.1 * x)
    head = params["classifier"]
    return layers.global_avg_pool(layers.conv2d(x, head["kernel"], head["bias"]))


def test_darknet19_equals_numpy():
    model = create_model("darknet19", num_classes=10)
    images = draw_images(2, 35, 43, 3)  # pools see odd maps
    variables = draw_variables(model, images)
    expected = forward(variables, images)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_papers_slope_is_the_default():
    for name in ("darknet19", "darknet53"):
        assert create_model(name).negative_slope == 0.1


def test_any_size():
    for name in ("darknet19", "darknet53"):
        model = create_model(name, num_classes=10)
        for size in ((1, 1), (33, 70)):
            logits = jax.eval_shape(
                lambda x, m=model: m.init_with_output(jax.random.key(0), x, train=False)[0],
                jnp.zeros((1, *size, 3)),
            )
            assert logits.shape == (1, 10)


def test_darknet19_has_no_layout():
    with pytest.raises(UserError, match="timm has no Darknet-19"):
        convert("darknet19", {}, layout="timm")
