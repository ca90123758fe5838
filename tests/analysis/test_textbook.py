"""The worked questions of docs/textbook.md: its figures, and the layers that they are about."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.analysis import receptive_fields, summary
from flaxcnn.layers import Conv, ConvTranspose, SeparableConv
from flaxcnn.models import create_model

PAGE = (Path(__file__).parents[2] / "docs" / "textbook.md").read_text()


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def on_page(*figures):
    """Each figure, written with commas, is on the page."""
    for figure in figures:
        text = figure if isinstance(figure, str) else f"{figure:,}"
        assert re.search(rf"(?<![\d,.]){re.escape(text)}(?![\d,]|\.\d)", PAGE), text


def only(model, shape):
    """The single layer of a network."""
    (layer,) = summary(model, shape).layers
    return layer


def test_parameters_of_a_layer():
    """Geron 2019, chapter 14: f (k k c + 1)."""
    layer = only(Conv(200, 5), (150, 100, 3))
    assert layer.params == 200 * (5 * 5 * 3 + 1) == 15_200
    assert layer.multiply_adds == 200 * 150 * 100 * 75 == 225_000_000
    assert np.prod(layer.output_shape) * 4 == 12_000_000
    # A dense layer between the same values: what sharing weights saves.
    dense = only(nn.Dense(1000), (28 * 28,))
    assert dense.params == 785_000
    on_page(15_200, "225 million", "12 MB", 785_000)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "stride", "expected"),
    [(227, 11, 0, 4, 55), (224, 7, 3, 2, 112), (32, 5, 0, 1, 28), (7, 3, 1, 2, 4), (6, 3, 1, 2, 3)],
)
def test_the_size_of_maps(size, kernel, padding, stride, expected):
    assert (size + 2 * padding - kernel) // stride + 1 == expected
    layer = only(Conv(1, kernel, stride, padding=padding), (size, size, 1))
    assert layer.output_shape == (expected, expected, 1)
    on_page(f"| {size} | {kernel} | {padding} | {stride} | {expected} |")


def test_two_3x3_see_what_one_5x5_does():
    two = nn.Sequential([Conv(64, 3, use_bias=False), Conv(64, 3, use_bias=False)])
    three = nn.Sequential([Conv(64, 3, use_bias=False)] * 3)
    one, large = Conv(64, 5, use_bias=False), Conv(64, 7, use_bias=False)
    sides, params = [], []
    for model in (two, one, three, large):
        found = summary(model, (32, 32, 64))
        sides.append(found.receptive_field)
        params.append(found.params)
    assert sides == [(5, 5), (5, 5), (7, 7), (7, 7)]
    assert params[:2] == [73_728, 102_400] and params[3] == 200_704
    # With random kernels: two linear layers are one, whose kernel is theirs convolved.
    a, b = random(3, 3, 1, 1), random(3, 3, 1, 1, seed=1)
    x = random(1, 9, 9, 1, seed=2)
    layer = Conv(1, 3, padding="VALID", use_bias=False)
    y = layer.apply({"params": {"kernel": b}}, layer.apply({"params": {"kernel": a}}, x))
    whole = sum(
        a[i, j, 0, 0] * np.pad(np.asarray(b[..., 0, 0]), ((i, 2 - i), (j, 2 - j)))
        for i in range(3)
        for j in range(3)
    )
    single = Conv(1, 5, padding="VALID", use_bias=False)
    kernel = {"kernel": jnp.asarray(whole)[:, :, None, None]}
    np.testing.assert_allclose(single.apply({"params": kernel}, x), y, rtol=1e-4, atol=1e-4)
    on_page(73_728, 102_400, 110_592, 200_704)


def test_a_separable_convolution():
    """Howard et al. 2017, section 3 and Table 3: 3x3, 512 to 512 channels on 14x14 maps."""
    shape = (14, 14, 512)
    ordinary = summary(Conv(512, 3, use_bias=False), shape)
    separable = summary(SeparableConv(512, 3, use_bias=False), shape)
    assert round(ordinary.multiply_adds / 1e6) == 462
    assert round(separable.multiply_adds / 1e6, 1) == 52.3
    share = separable.multiply_adds / ordinary.multiply_adds
    assert share == pytest.approx(1 / 512 + 1 / 3**2, rel=1e-12)
    assert round(ordinary.params / 1e6, 2) == 2.36 and round(separable.params / 1e6, 2) == 0.27
    narrow = summary(SeparableConv(384, 3, use_bias=False), (14, 14, 384))  # alpha = 0.75
    assert round(narrow.multiply_adds / 1e6, 1) == 29.6 and round(narrow.params / 1e6, 2) == 0.15
    small = summary(SeparableConv(384, 3, use_bias=False), (10, 10, 384))  # rho = 0.714
    assert round(small.multiply_adds / 1e6, 1) == 15.1 and round(small.params / 1e6, 2) == 0.15
    on_page("462", "52.3", "29.6", "15.1", "0.75", "0.714")


def as_matrix(kernel, size, stride):
    """A strided convolution without border as a matrix: a row per output, by its definition."""
    k = kernel.shape[0]
    out = (size - k) // stride + 1
    matrix = np.zeros((out, out, size, size), np.float32)
    for i in range(out):
        for j in range(out):
            matrix[i, j, i * stride : i * stride + k, j * stride : j * stride + k] = kernel
    return matrix.reshape(out * out, size * size)


@pytest.mark.parametrize(("size", "stride"), [(4, 1), (7, 2)])
def test_convolution_and_its_transpose_as_matrices(size, stride):
    """Dumoulin and Visin 2016, section 4.1: 3x3 on 4x4 is a matrix of 4 rows and 16 columns."""
    kernel = random(3, 3)
    matrix = as_matrix(np.asarray(kernel), size, stride)
    params = {"params": {"kernel": kernel[:, :, None, None]}}
    arguments = {"strides": stride, "padding": "VALID", "use_bias": False}
    x = random(size, size, seed=1)
    y = Conv(1, 3, **arguments).apply(params, x[None, :, :, None])
    np.testing.assert_allclose(y.ravel(), matrix @ x.ravel(), rtol=1e-5, atol=1e-5)
    back = ConvTranspose(1, 3, transpose_kernel=True, **arguments).apply(params, y)
    np.testing.assert_allclose(back.ravel(), matrix.T @ y.ravel(), rtol=1e-5, atol=1e-5)
    if size == 4:
        assert matrix.shape == (4, 16)


def test_a_masked_convolution_sees_only_what_came_before():
    """van den Oord et al. 2016 (PixelRNN), mask A: above, and to the left."""
    mask = np.ones((3, 3, 1, 1), np.float32)
    mask[1, 1:] = mask[2] = 0
    layer, x = Conv(1, 3, use_bias=False, mask=jnp.asarray(mask)), random(1, 7, 7, 1)
    params = {"params": {"kernel": random(3, 3, 1, 1, seed=1)}}
    gradient = jax.grad(lambda x: layer.apply(params, x)[0, 3, 3, 0])(x)[0, :, :, 0]
    seen = {tuple(map(int, place)) for place in np.argwhere(np.asarray(gradient))}
    assert seen == {(2, 2), (2, 3), (2, 4), (3, 2)}
    masked = {"params": {"kernel": params["params"]["kernel"] * mask}}
    expected = Conv(1, 3, use_bias=False).apply(masked, x)
    np.testing.assert_array_equal(layer.apply(params, x), expected)


def test_dilation_is_a_kernel_filled_with_zeros():
    """Yu and Koltun 2016: 3x3 by 2 is 5x5 with 9 values, and sees as far as it."""
    kernel, x = random(3, 3, 2, 4), random(1, 9, 9, 2, seed=1)
    filled = jnp.zeros((5, 5, 2, 4)).at[::2, ::2].set(kernel)
    dilated = Conv(4, 3, dilation=2, use_bias=False)
    np.testing.assert_allclose(
        dilated.apply({"params": {"kernel": kernel}}, x),
        Conv(4, 5, use_bias=False).apply({"params": {"kernel": filled}}, x),
        rtol=1e-5,
        atol=1e-5,
    )
    assert summary(dilated, (9, 9, 2)).receptive_field == (5, 5)
    assert summary(dilated, (9, 9, 2)).params == 3 * 3 * 2 * 4
    stack = nn.Sequential([Conv(2, 3, dilation=2**i) for i in range(4)])
    sides = [field.size[0] for field in receptive_fields(stack, (64, 64, 2)).values()]
    assert sides == [3, 7, 15, 31]  # Figure 1
    on_page("3, 7, 15, 31")


class Convolutional(nn.Module):
    """AlexNet's stages, and its dense layers as convolutions without a border."""

    stages: nn.Module

    @nn.compact
    def __call__(self, x):
        x = self.stages(x, train=False)[-1]
        x = nn.relu(Conv(16, 6, padding="VALID", name="fc1")(x))
        x = nn.relu(Conv(16, 1, name="fc2")(x))
        return Conv(5, 1, name="classifier")(x)


def test_dense_layers_as_convolutions():
    """Long et al. 2015, section 3.1: the same scores, and a map of them on a larger image."""
    narrow = {"num_classes": 5, "features": (4, 6, 8, 6, 4), "hidden": (16, 16)}
    model, images = create_model("alexnet", **narrow), random(1, 224, 224, 3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    params = dict(jax.tree.map(lambda x: 0.1 * random(*x.shape, seed=x.size), shapes["params"]))
    expected = model.apply({"params": params}, images, train=False)
    heads = {}
    for layer, side in (("fc1", 6), ("fc2", 1), ("classifier", 1)):
        dense = params.pop(layer)  # flattened as rows, columns, channels: the kernel's own order
        kernel = dense["kernel"].reshape(side, side, -1, dense["kernel"].shape[-1])
        heads[layer] = {"kernel": kernel, "bias": dense["bias"]}
    whole = Convolutional(create_model("alexnet", **narrow, features_only=True))
    variables = {"params": {"stages": params, **heads}}
    np.testing.assert_allclose(whole.apply(variables, images)[:, 0, 0], expected, rtol=1e-4)
    scores = jax.eval_shape(whole.apply, variables, jnp.zeros((1, 288, 320, 3)))
    assert scores.shape == (1, 3, 4, 5)  # a window every 32 pixels
    on_page("3 x 4")
