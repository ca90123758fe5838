import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, init, init_shapes, relative_error

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.weights.convert import convert, export

SMALL = {"hidden": (48, 40), "num_classes": 10}
PIXELS = 60  # images of this deviation, so that the sum of squares counts beside k


def forward(params, images, groups=2, k=2.0, alpha=1e-4):
    """Figure 2 of the paper: the numbers there are 55, 27, 13 for images of 227x227."""

    def conv(x, i, groups=1, **kwargs):
        layer = params[f"conv{i}"]
        return layers.relu(
            layers.conv2d(x, layer["kernel"], layer["bias"], groups=groups, **kwargs)
        )

    def norm(x):
        return layers.local_response_norm(x, size=5, k=k, alpha=alpha, beta=0.75)

    def pool(x):
        return layers.max_pool(x, 3, 2)

    x = pool(norm(conv(images, 1, stride=4)))
    x = pool(norm(conv(x, 2, groups, padding=2)))
    x = conv(conv(x, 3, padding=1), 4, groups, padding=1)
    x = pool(conv(x, 5, groups, padding=1))
    x = layers.flatten(layers.adaptive_avg_pool(x, 6))
    for name in ("fc1", "fc2"):
        x = layers.relu(layers.dense(x, params[name]["kernel"], params[name]["bias"]))
    return layers.dense(x, params["classifier"]["kernel"], params["classifier"]["bias"])


@pytest.mark.parametrize(
    ("name", "groups", "size"),
    [
        ("alexnet_2012_2group", 2, (227, 227)),
        ("alexnet_2012_2group", 2, (67, 101)),
        ("alexnet_ungrouped", 1, (128, 120)),
    ],
)
def test_forms_of_2012_equal_numpy(name, groups, size):
    images = PIXELS * draw_images(1, *size, 3)
    model, variables = draw_network(name, images, **SMALL)
    expected = forward(variables["params"], images, groups)
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_constants_of_caffe():
    images = PIXELS * draw_images(1, 99, 99, 3)
    model, variables = draw_network("alexnet_2012_2group", images, response_norm="caffe", **SMALL)
    logits = evaluate(model, variables, images)
    assert relative_error(logits, forward(variables["params"], images, k=1, alpha=2e-5)) < 1e-4
    assert relative_error(logits, forward(variables["params"], images)) > 0.1


def test_caffe_names_and_back():
    images = draw_images(1, 67, 67, 3)
    _, variables = draw_network("alexnet_2012_2group", images, **SMALL)
    tensors = export("alexnet_2012_2group", variables, "caffe", **SMALL)
    assert {name: array.shape for name, array in tensors.items() if name.endswith("weight")} == {
        "conv1.weight": (96, 3, 11, 11),
        "conv2.weight": (256, 48, 5, 5),
        "conv3.weight": (384, 256, 3, 3),
        "conv4.weight": (384, 192, 3, 3),
        "conv5.weight": (256, 192, 3, 3),
        "fc6.weight": (48, 9216),
        "fc7.weight": (40, 48),
        "fc8.weight": (10, 40),
    }
    back = convert("alexnet_2012_2group", tensors, "caffe", **SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
    channel_first = np.asarray(variables["params"]["fc1"]["kernel"]).reshape(6, 6, 256, 48)
    np.testing.assert_array_equal(
        tensors["fc6.weight"].reshape(48, 256, 6, 6), channel_first.transpose(3, 2, 0, 1)
    )


def test_torchvision_names_and_back():
    _, variables = draw_network("alexnet", draw_images(1, 63, 63, 3), **SMALL)
    tensors = export("alexnet", variables, "torchvision", **SMALL)
    places = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + [f"classifier.{i}" for i in (1, 4, 6)]
    assert set(tensors) == {f"{place}.{leaf}" for place in places for leaf in ("weight", "bias")}
    back = convert("alexnet", tensors, "torchvision", **SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


def test_smallest_images():
    for name, side in (("alexnet", 63), ("alexnet_2012_2group", 67)):
        model = create_model(name, **SMALL)
        init_shapes(model, jnp.zeros((1, side, side, 3)))
        with pytest.raises(UserError, match=f"AlexNet needs images of at least {side}x{side}"):
            images = jnp.zeros((1, side, side - 1, 3))
            init_shapes(model, images)


def test_dropout_is_where_the_paper_and_torchvision_have_it():
    images = draw_images(2, 67, 67, 3)
    for name in ("alexnet_2012_2group", "alexnet"):
        model, variables = draw_network(name, images, dropout=0.99, hidden=(48, 400), num_classes=0)
        train = jax.jit(
            lambda v, m=model: m.apply(v, images, train=True, rngs={"dropout": jax.random.key(1)})
        )
        # After fc2 it leaves few of the features, before it those of positive bias.
        assert (np.mean(train(variables) != 0) < 0.1) == (name == "alexnet_2012_2group")


def test_initial_weights():
    paper, torch = (
        init(create_model(name, hidden=(64, 64)), jnp.zeros((1, 67, 67, 3)))["params"]
        for name in ("alexnet_2012_2group", "alexnet")
    )
    biases = {name: float(layer["bias"].mean()) for name, layer in paper.items()}
    ones = {"conv2", "conv4", "conv5", "fc1", "fc2"}
    assert biases == {name: float(name in ones) for name in paper}
    for name, layer in paper.items():
        assert abs(layer["kernel"].std() / 0.01 - 1) < 0.03, name
    for name, layer in torch.items():
        bound = np.prod(layer["kernel"].shape[:-1]) ** -0.5
        assert 0.97 * bound < abs(layer["kernel"]).max() <= bound * 1.0001, name
        assert not layer["bias"].any()


def test_alias():
    assert variant("alexnet_owt") is variant("alexnet")
