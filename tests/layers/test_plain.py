"""Layers in plain `lax` have the values of their usual forms, and no primitive of ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxcnn.layers import (
    avg_pool,
    channel_max_pool,
    conv,
    conv_transpose,
    local_response_norm,
    max_pool,
)
from flaxcnn.layers.barriers import compute_gradient_once
from flaxcnn.layers.plain import in_plain_lax

OURS = {
    *("convolve", "convolve_input_gradient", "max_of_windows", "keep_apart", "gradient_once"),
}
LAYOUT = ("NHWC", "HWIO", "NHWC")


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def in_lax(function, *arguments):
    """The function's values in plain `lax`, and the names of its primitives."""
    with in_plain_lax():
        program = jax.make_jaxpr(lambda *x: function(*x))(*arguments)
    names = {str(equation.primitive) for equation in program.eqns}
    assert not names & OURS
    return jax.jit(jax.extend.core.jaxpr_as_fun(program))(*arguments)[0], names


@pytest.mark.parametrize(
    ("arguments", "pads"),
    [
        ({"strides": (2, 3), "groups": 2}, "VALID"),
        ({"strides": 2, "dilation": (1, 2)}, "SAME"),
        ({"strides": (1, 2), "groups": 4}, ((0, 3), (2, 1))),
    ],
    ids=str,
)
def test_a_transposed_convolution_is_that_of_lax(arguments, pads):
    """`lax.conv_transpose` has no groups: one for each of them."""
    x, kernel = random(0, 2, 4, 3, 8), random(1, 3, 2, 8 // arguments.get("groups", 1), 4)
    groups = arguments.pop("groups", 1)
    strides = np.broadcast_to(arguments["strides"], 2)
    dilation = np.broadcast_to(arguments.get("dilation", 1), 2)
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    expected = jnp.concatenate(
        [
            lax.conv_transpose(part, k, strides, pads, dilation, LAYOUT, precision="highest")
            for part, k in parts
        ],
        -1,
    )
    actual, names = in_lax(
        lambda x, k: conv_transpose(x, k, padding=pads, groups=groups, **arguments), x, kernel
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert "conv_general_dilated" in names


def test_a_network_s_layers_have_the_same_values():
    x, kernel = random(0, 2, 9, 8, 4), random(1, 3, 3, 2, 6)

    def layers(x, kernel):
        x = compute_gradient_once(conv(x, kernel, strides=2, padding=((1, 0), (2, 1)), groups=2))
        y = max_pool(x, (3, 2), (2, 1), ((1, 1), (0, 1)), ceil_mode=True)
        y = y[:, :2, :4] + avg_pool(x, (3, 3), (2, 1), "SAME", count_include_pad=False)[:, :2, :4]
        return local_response_norm(channel_max_pool(y, 3))

    actual, names = in_lax(layers, x, kernel)
    np.testing.assert_allclose(actual, layers(x, kernel), rtol=1e-5, atol=1e-6)
    assert {"conv_general_dilated", "reduce_window_max", "reduce_window_sum"} <= names


def test_it_ends_with_the_block():
    x, kernel = random(0, 1, 4, 4, 1), random(1, 3, 3, 1, 1)
    with pytest.raises(RuntimeError), in_plain_lax():
        raise RuntimeError
    assert "convolve" in str(jax.make_jaxpr(conv)(x, kernel))
