import json

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from make_captum import CLASSES, GOLDEN, NOISE, STEPS, STRIDE, WINDOW, draw_network

from flaxcnn.analysis.attribution import METHODS, grad_cam, guided_backpropagation, heatmap
from flaxcnn.errors import UserError
from flaxcnn.models import SmallCNN

MODEL = SmallCNN(4, ((6, 3), "pool", (8, 3), "pool"), (10,))
OPTIONS = {
    "smooth_grad": {"samples": 4_000, "noise": NOISE},
    "integrated_gradients": {"steps": STEPS},
    "grad_cam of conv2": {"layer": "conv2"},
    "occlusion": {"window": WINDOW, "stride": STRIDE},
}


@pytest.fixture(scope="module")
def network():
    weights, images = draw_network()
    return {"params": flax.traverse_util.unflatten_dict(weights, sep="/")}, images


@pytest.mark.parametrize("name", [*METHODS, "grad_cam of conv2"])
def test_values_are_captums(name, network):
    variables, images = network
    golden = json.loads(GOLDEN.read_text())[name]
    expected = np.array(golden["values"], np.float32).reshape(golden["shape"])
    method = METHODS[name.partition(" ")[0]]
    got = method(MODEL, variables, images, np.array(CLASSES), **OPTIONS.get(name, {}))
    assert got.dtype == jnp.float32
    if name == "smooth_grad":  # two means, over 20,000 draws and ours
        error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
        assert error < 0.04
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_class_is_the_predicted_one_by_default(network):
    variables, images = network
    scores = MODEL.apply(variables, images, train=False)
    for method in (guided_backpropagation, grad_cam):
        expected = method(MODEL, variables, images, np.argmax(scores, -1))
        np.testing.assert_array_equal(method(MODEL, variables, images), expected)


class Relu6(nn.Module):
    """Scores whose gradients can be written down: relu6 of two weighted sums, and their sum."""

    @nn.compact
    def __call__(self, x, train):
        kernel = jnp.array([[1.0, -2.0], [3.0, 1.0]])
        y = nn.relu6(x.reshape(-1, 2) @ kernel)
        return y @ jnp.array([[1.0, 2.0], [-1.0, 1.0]])


def test_relu6_is_guided_too():
    images = jnp.array([[1.0, 2.0], [0.5, 1.0], [0.0, 1.0]]).reshape(3, 1, 2, 1)
    kernel = np.array([[1.0, -2.0], [3.0, 1.0]])
    passed = np.array([[0, 0], [1, 0], [1, 1]])  # the sums are (7, 0), (3.5, 0) and (3, 1)
    plain = np.array([1.0, -1.0]) * passed @ kernel.T  # of class 0
    guided = np.array([1.0, 0.0]) * passed @ kernel.T
    for name, expected in (("saliency", plain), ("guided_backpropagation", guided)):
        got = METHODS[name](Relu6(), {}, images, 0)
        np.testing.assert_allclose(got.reshape(3, 2), expected)


def test_heatmap_is_scaled_by_image():
    values = np.zeros((2, 10, 10, 2), np.float32)
    values[0, 3, 4] = (-5, 2)
    values[1] = np.linspace(-1, 1, 100).reshape(10, 10, 1)
    maps = heatmap(values)
    assert maps[0].max() == maps[0, 3, 4] == 1
    assert heatmap(values, absolute=False)[0, 3, 4] == -1
    assert maps.shape == (2, 10, 10) and maps.max() == 1 and heatmap(0 * values).max() == 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("saliency", {"classes": 4}, "class 4: there are 4"),
        ("saliency", {"classes": [1]}, "one for each image"),
        ("grad_cam", {"layer": "conv3"}, "no layer 'conv3': did you mean conv2, conv1"),
        ("grad_cam", {"layer": "fc1"}, "fc1 puts out"),
        ("occlusion", {"window": 9}, "window 9 and images of 8x8"),
        ("smooth_grad", {"samples": 0}, "samples is 0"),
    ],
)
def test_mistakes_are_named(method, options, message, network):
    variables, images = network
    with pytest.raises(UserError, match=message):
        METHODS[method](MODEL, variables, images, **options)
