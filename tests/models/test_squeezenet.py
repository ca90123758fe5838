import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import conv2d, global_avg_pool, max_pool, relu

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, export

AFTER_POOLING = (2, 5, 9)  # fire modules of version 1.0, Table 1


def draw(name, side, **kwargs):
    """The network, variables with kernels that keep the variance, and images."""
    model = create_model(name, num_classes=10, **kwargs)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def draw_leaf(leaf):
        if leaf.ndim == 1:
            return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
        std = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

    return model, jax.tree.map(draw_leaf, shapes), images


def reference(params, images, bypass=(), border=0):
    """SqueezeNet 1.0 by Table 1; `bypass` lists the fire modules that have one."""

    def convolve(x, layer, **kwargs):
        return conv2d(x, layer["kernel"], layer["bias"], **kwargs)

    x = relu(convolve(images, params["stem_conv"], stride=2))
    for number in range(2, 10):
        if number in AFTER_POOLING:
            x = max_pool(x, 3, 2, ceil_mode=True)
        fire, before = params[f"fire{number}"], x
        squeezed = relu(convolve(x, fire["squeeze"]))
        narrow = relu(convolve(squeezed, fire["expand1x1"]))
        wide = relu(convolve(squeezed, fire["expand3x3"], padding=1))
        x = np.concatenate([narrow, wide], -1)
        if number in bypass:
            x = x + (convolve(before, fire["bypass"]) if "bypass" in fire else before)
    return global_avg_pool(relu(convolve(x, params["classifier"], padding=border)))


@pytest.mark.parametrize(
    ("name", "side", "arguments", "projections"),
    [
        ("squeezenet1_0_simple_bypass", 46, {"bypass": (3, 5, 7, 9)}, ()),
        ("squeezenet1_0_complex_bypass", 46, {"bypass": range(2, 10)}, (2, 4, 6, 8)),
        ("squeezenet1_0_caffe", 47, {"border": 1}, ()),
    ],
)
def test_forms_without_a_port_are_the_papers(name, side, arguments, projections):
    model, variables, images = draw(name, side)
    params = variables["params"]
    projected = [n for n in range(2, 10) if "bypass" in params[f"fire{n}"]]
    assert projected == list(projections)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = reference(params, images, **arguments)
    assert np.ptp(expected) > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "smallest"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_smallest_image(name, smallest):
    model = create_model(name, num_classes=3)
    logits = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0],
        jnp.zeros((1, smallest, smallest + 9, 3)),
    )
    assert logits.shape == (1, 3)
    with pytest.raises(UserError, match=f"SqueezeNet needs .* at least {smallest}x{smallest}, "):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False),
            jnp.zeros((1, smallest + 9, smallest - 1, 3)),
        )


def test_names_of_the_deep_compression_release():
    """They are read as those of the authors' prototxt; names are exported as there."""
    name = "squeezenet1_0_caffe"
    _, variables, _ = draw(name, 32)
    tensors = export(name, variables, "caffe", num_classes=10)
    assert {"conv1.weight", "fire2/squeeze1x1.bias", "fire9/expand3x3.weight"} < set(tensors)
    other = {
        n.replace("squeeze1x1", "conv1x1_1")
        .replace("expand1x1", "conv1x1_2")
        .replace("expand3x3", "conv3x3_2")
        .replace("conv10", "conv_final"): tensor
        for n, tensor in tensors.items()
    }
    assert len(set(other) - set(tensors)) == 50
    back = convert(name, other, "caffe", num_classes=10)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    other["fire2/conv5x5.bias"] = np.zeros(1)
    with pytest.raises(UserError, match="unexpected fire2/conv5x5.bias$"):
        convert(name, other, "caffe", num_classes=10)
