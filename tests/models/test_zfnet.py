import jax.numpy as jnp
import numpy_layers as layers
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, init_shapes, relative_error

from flaxcnn.errors import UserError
from flaxcnn.models import create_model

SMALL = {"hidden": (48, 40), "num_classes": 10}
PIXELS = 60  # images of this deviation, so that the sum of squares counts beside k


def forward(params, images, sides=None):
    """Figure 3 of the paper; checks the sides of maps if they are given."""

    def conv(x, i, **kwargs):
        layer = params[f"conv{i}"]
        return layers.relu(layers.conv2d(x, layer["kernel"], layer["bias"], **kwargs))

    def norm(x):
        return layers.local_response_norm(x, size=5, k=2, alpha=1e-4, beta=0.75)

    def pool(x):
        return layers.max_pool(x, 3, 2, ceil_mode=True)

    maps = [conv(images, 1, stride=2, padding=1)]
    maps.append(norm(pool(maps[-1])))
    maps.append(conv(maps[-1], 2, stride=2))
    maps.append(norm(pool(maps[-1])))
    x = conv(conv(conv(maps[-1], 3, padding=1), 4, padding=1), 5, padding=1)
    maps.append(pool(x))
    if sides:
        assert [x.shape[1] for x in maps] == sides
    x = layers.flatten(layers.adaptive_avg_pool(maps[-1], 6))
    for name in ("fc1", "fc2"):
        x = layers.relu(layers.dense(x, params[name]["kernel"], params[name]["bias"]))
    return layers.dense(x, params["classifier"]["kernel"], params["classifier"]["bias"])


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("zfnet", (224, 224), [110, 55, 26, 13, 6]),
        ("zfnet", (47, 90), None),
        ("zfnet_b", (96, 80), None),
    ],
)
def test_equals_numpy(name, size, sides):
    images = PIXELS * draw_images(1, *size, 3)
    model, variables = draw_network(name, images, **SMALL)
    expected = forward(variables["params"], images, sides)
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_smallest_images():
    model = create_model("zfnet", **SMALL)
    init_shapes(model, jnp.zeros((1, 47, 47, 3)))
    with pytest.raises(UserError, match="ZFNet needs images of at least 47x47"):
        init_shapes(model, jnp.zeros((1, 47, 46, 3)))
