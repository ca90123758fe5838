import jax
import numpy_layers as layers
from counting import count_values
from draw import draw_images
from drawn import draw_network, evaluate, relative_error

from flaxcnn.models import create_model, variant


def conv(params, x, i, padding):
    layer = params[f"conv{i}"]
    return layers.relu(layers.conv2d(x, layer["kernel"], layer["bias"], padding=padding))


def dense(params, x, name):
    return layers.dense(x, params[name]["kernel"], params[name]["bias"])


def test_bad_design_equals_numpy():
    images = draw_images(2, 13, 18, 3)
    model, variables = draw_network("bad_design_840m", images, hidden=40)
    params = variables["params"]
    x = conv(params, conv(params, images, 1, 2), 2, 2)
    x = layers.flatten(layers.max_pool(x, 5, 2, padding=1))
    expected = dense(params, layers.relu(dense(params, x, "fc1")), "classifier")
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_pyramid_equals_numpy():
    images = draw_images(2, 70, 45, 3)
    model, variables = draw_network("pyramid_cnn", images)
    params, x = variables["params"], images
    for i in range(1, 6):
        x = layers.max_pool(conv(params, x, i, 1), 2, 2)
    expected = dense(params, layers.global_avg_pool(x), "classifier")
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_parameters_per_layer():
    """The sums of shared/reference/zoo.csv, whose last once was 51,210: ten biases for 100."""
    for name, expected in {
        "bad_design_840m": [19_456, 819_328, 836_829_696, 51_300],
        "pyramid_cnn": [896, 18_496, 73_856, 295_168, 1_180_160, 51_300],
    }.items():
        model, v = create_model(name), variant(name)
        images = jax.ShapeDtypeStruct((1, *v.input_shape), "float32")
        params = jax.eval_shape(
            lambda x, m=model: m.init(jax.random.key(0), x, train=False), images
        )
        assert sorted(map(count_values, params["params"].values())) == sorted(expected)


def test_what_the_pyramid_saves():
    bad, good = variant("bad_design_840m"), variant("pyramid_cnn")
    assert bad.params > 500 * good.params and bad.macs > 45 * good.macs
