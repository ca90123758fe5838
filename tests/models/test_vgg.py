import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, init, init_shapes, relative_error

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, export

SMALL = {"hidden": (48, 40), "num_classes": 10}

# Table 1, written out: kernel size and features of each convolution, M for pooling.
A_LRN = ["3-64", "LRN", "M", "3-128", "M", "3-256", "3-256", "M"]
A_LRN += ["3-512", "3-512", "M", "3-512", "3-512", "M"]
C = ["3-64", "3-64", "M", "3-128", "3-128", "M", "3-256", "3-256", "1-256", "M"]
C += ["3-512", "3-512", "1-512", "M", "3-512", "3-512", "1-512", "M"]


def forward(params, images, table):
    x = images
    names = iter(sorted(name for name in params if "conv" in name))
    for entry in table:
        if entry == "M":
            x = layers.max_pool(x, 2, 2)
        elif entry == "LRN":
            x = layers.local_response_norm(x, size=5, k=2, alpha=1e-4, beta=0.75)
        else:
            layer = params[next(names)]
            size, features = map(int, entry.split("-"))
            assert layer["kernel"].shape[::3] == (size, features)
            x = layers.conv2d(x, layer["kernel"], layer["bias"], padding=size // 2)
            x = layers.relu(x)
    assert next(names, None) is None
    x = layers.flatten(layers.adaptive_avg_pool(x, 7))
    for name in ("fc1", "fc2"):
        x = layers.relu(layers.dense(x, params[name]["kernel"], params[name]["bias"]))
    return layers.dense(x, params["classifier"]["kernel"], params["classifier"]["bias"])


@pytest.mark.parametrize(
    ("name", "table", "size"), [("vgg11_lrn", A_LRN, (70, 45)), ("vgg16_c", C, (66, 40))]
)
def test_forms_without_a_port_equal_numpy(name, table, size):
    images = 60 * draw_images(1, *size, 3)
    model, variables = draw_network(name, images, **SMALL)
    expected = forward(variables["params"], images, table)
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_caffe_names_and_back():
    images = draw_images(1, 32, 32, 3)
    _, variables = draw_network("vgg16", images, **SMALL)
    tensors = export("vgg16", variables, "caffe", **SMALL)
    counts = (2, 2, 3, 3, 3)
    convs = [f"conv{s}_{i}" for s, n in enumerate(counts, 1) for i in range(1, n + 1)]
    names = [*convs, "fc6", "fc7", "fc8"]
    assert set(tensors) == {f"{n}.{leaf}" for n in names for leaf in ("weight", "bias")}
    assert tensors["fc6.weight"].shape == (48, 25088)
    back = convert("vgg16", tensors, "caffe", **SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


@pytest.mark.parametrize(
    ("name", "layout"), [("vgg11_bn", "torchvision"), ("vgg13", "timm"), ("vgg19", "keras")]
)
def test_there_and_back(name, layout):
    _, variables = draw_network(name, draw_images(1, 32, 32, 3), **SMALL)
    back = convert(name, export(name, variables, layout, **SMALL), layout, **SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


def test_smallest_images():
    model = create_model("vgg11", **SMALL)
    init_shapes(model, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(UserError, match="VGG needs images of at least 32x32"):
        init_shapes(model, jnp.zeros((1, 31, 32, 3)))


def test_initial_weights():
    images = jnp.zeros((1, 32, 32, 3))
    torch, glorot = (
        init(create_model(name, **SMALL), images)["params"] for name in ("vgg11", "vgg16_c")
    )
    last = torch["stage5_conv2"]["kernel"]
    assert abs(last.std() / (2 / (9 * 512)) ** 0.5 - 1) < 0.02
    assert abs(torch["fc1"]["kernel"].std() / 0.01 - 1) < 0.02
    bound = (6 / (2 * 512)) ** 0.5  # a 1x1 kernel
    assert 0.99 * bound < abs(glorot["stage5_conv3"]["kernel"]).max() <= bound
