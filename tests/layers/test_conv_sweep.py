"""Convolutions of all kinds, drawn by hypothesis, against sums in float64 that NumPy takes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxcnn.layers import conv


@st.composite
def convolutions(draw):
    """Draws (images' shape, kernel's shape, arguments) of a convolution with an output."""
    one_axis = st.sampled_from([(1, 5), (7, 1), (1, 3), (2, 1)])
    square = st.integers(1, 7).map(lambda size: (size, size))
    taps = draw(st.one_of(one_axis, square))
    strides, dilation = (
        draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (4, 3)
    )
    extent = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    pads = draw(st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)) for _ in taps)))
    padding = draw(st.sampled_from(["SAME", "VALID", pads]))
    size = tuple(draw(st.integers(e, e + 9)) for e in extent)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    depthwise = draw(st.booleans())
    width = 1 if depthwise else draw(st.integers(1, 9))
    features = groups * draw(st.integers(1, 4))
    images = (draw(st.integers(1, 3)), *size, groups * width)
    arguments = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return images, (*taps, width, features), arguments


def in_float64(x, kernel, dy, *, strides, padding, dilation, groups):
    """The outputs, and both gradients of their product with dy, as sums over the taps."""
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    taps, (width, features) = kernel.shape[:2], kernel.shape[2:]
    if isinstance(padding, str):
        window = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    y, dpadded, dkernel = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    per_group = features // groups
    for i, j in itertools.product(*map(range, taps)):
        seen = tuple(
            slice(tap * d, tap * d + (out - 1) * s + 1, s)
            for tap, d, s, out in zip((i, j), dilation, strides, dy.shape[1:3], strict=True)
        )
        for g in range(groups):
            channels = slice(g * width, (g + 1) * width)
            filters = slice(g * per_group, (g + 1) * per_group)
            part, weights = padded[:, *seen, channels], kernel[i, j, :, filters]
            y[..., filters] += part @ weights
            dpadded[:, *seen, channels] += dy[..., filters] @ weights.T
            dkernel[i, j, :, filters] += np.einsum("nhwc,nhwf->cf", part, dy[..., filters])
    rows, cols = ((low, low + n) for (low, _), n in zip(padding, x.shape[1:3], strict=True))
    return y, dpadded[:, slice(*rows), slice(*cols)], dkernel


@settings(max_examples=20, deadline=None, derandomize=True)
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_value_and_gradients_are_those_of_float64(convolution, seed):
    x_shape, kernel_shape, arguments = convolution
    rng = np.random.default_rng(seed)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (x_shape, kernel_shape))
    f = functools.partial(conv, **arguments)
    shape = jax.eval_shape(f, x, kernel).shape
    dy = jnp.asarray(rng.normal(size=shape), jnp.float32)

    @jax.jit
    def value_and_gradients(x, kernel, dy):
        y, transpose = jax.vjp(f, x, kernel)
        return y, *transpose(dy)

    for ours, exact in zip(
        value_and_gradients(x, kernel, dy), in_float64(x, kernel, dy, **arguments), strict=True
    ):
        assert ours.shape == exact.shape
        error = np.linalg.norm(np.asarray(ours, np.float64) - exact)
        assert error <= 1e-5 * np.linalg.norm(exact)
