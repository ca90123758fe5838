"""What Flax's own tests of its convolutions ask for, and PyTorch's transposed ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.experimental.jet import jet
from lax_convolutions import FORMS, assert_close, lax_conv, random

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, ConvTranspose, DepthwiseConv, SeparableConv, conv, conv_transpose

MASK = np.tril(np.ones((3, 2, 4, 6), np.float32))
CONVS = [
    ((2, 7, 6, 4), {"padding": "CIRCULAR", "strides": 2}),
    ((2, 7, 6, 4), {"padding": "CIRCULAR", "kernel_dilation": (1, 2)}),
    ((2, 7, 6, 4), {"padding": "REFLECT", "kernel_dilation": 2}),
    ((2, 7, 6, 4), {"padding": [1, (2, 0)], "feature_group_count": 2}),
    ((2, 7, 6, 4), {"input_dilation": (2, 1), "strides": None, "padding": 1}),
    ((2, 7, 6, 4), {"mask": MASK, "use_bias": False}),
    ((7, 6, 4), {"padding": "VALID"}),
    ((2, 1, 3, 7, 6, 4), {}),
    ((2, 9, 4), {"kernel_size": (3,), "padding": "CAUSAL", "kernel_dilation": 2, "strides": 2}),
]
TRANSPOSED = [
    ((1, 5, 5, 2), {"padding": 1, "strides": (2, 2)}),
    ((2, 5, 4, 2), {"padding": ((2, 0), (-1, 3)), "strides": (2, 3), "kernel_dilation": (2, 1)}),
    ((2, 5, 4, 2), {"padding": "VALID", "kernel_dilation": (2, 2)}),
    ((2, 5, 4, 2), {"padding": "CIRCULAR", "strides": (2, 2)}),
    ((2, 5, 4, 2), {"padding": "CIRCULAR", "strides": (3, 1), "transpose_kernel": True}),
    ((5, 4, 2), {"transpose_kernel": True, "strides": (2, 1)}),
    ((2, 3, 5, 4, 2), {"mask": np.tril(np.ones((3, 2, 2, 6), np.float32))}),
]


def assert_like_flax(ours, theirs, shape):
    x, key = random(0, shape), jax.random.key(0)
    params = jax.tree.map(lambda leaf: random(1, leaf.shape), jax.eval_shape(theirs.init, key, x))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(ours.init, key, x)
    )
    assert_close(ours.apply(params, x), theirs.apply(params, x))


@pytest.mark.parametrize(("shape", "keywords"), CONVS, ids=str)
def test_conv_takes_flaxs_keywords(shape, keywords):
    keywords = {"features": 6, "kernel_size": (3, 2), **keywords}
    assert_like_flax(Conv(**keywords), nn.Conv(**keywords), shape)


@pytest.mark.parametrize(("shape", "keywords"), TRANSPOSED, ids=str)
def test_conv_transpose_takes_flaxs_keywords(shape, keywords):
    keywords = {"features": 6, "kernel_size": (3, 2), **keywords}
    assert_like_flax(ConvTranspose(**keywords), nn.ConvTranspose(**keywords), shape)


@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose"])
def test_types_are_flaxs(layer):
    import flaxcnn.layers

    ours, theirs = getattr(flaxcnn.layers, layer), getattr(nn, layer)
    for inputs in (jnp.bfloat16, jnp.float16, jnp.float32):
        for param_dtype in (jnp.float32, jnp.bfloat16):
            types = {"dtype": None, "param_dtype": param_dtype}
            x = jax.ShapeDtypeStruct((1, 4, 4, 2), inputs)
            assert jax.eval_shape(
                ours(3, (2, 2), **types).init_with_output, jax.random.key(0), x
            ) == jax.eval_shape(theirs(3, (2, 2), **types).init_with_output, jax.random.key(0), x)
    text = str(jax.make_jaxpr(lambda x: ours(3, (2, 2), precision="highest").init_with_output(
        jax.random.key(0), x))(jnp.ones((1, 4, 4, 2))))  # fmt: skip
    assert "highest" in text.lower()


def test_an_integer_kernel_size_takes_its_dimensions_from_the_input():
    for dimensions in (1, 2, 3):
        x = jax.ShapeDtypeStruct((2, *(5,) * dimensions, 4), jnp.float32)
        layers = Conv(4, 3), ConvTranspose(4, 3), DepthwiseConv(3), SeparableConv(4, 3)
        for layer in layers:
            y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
            assert y.shape == x.shape
            assert max(map(jnp.ndim, jax.tree.leaves(variables))) == dimensions + 2


def scatter(x, kernel, stride, padding, output_padding, dilation, groups):
    """PyTorch's ConvTranspose2d: each pixel puts down the kernel [out/groups, in] times itself."""
    n, *size, channels = x.shape
    reach = dilation * (kernel.shape[0] - 1)
    y = np.zeros((n, *((s - 1) * stride + reach + 1 + output_padding for s in size), groups * 2))
    for (i, j), (a, b) in (
        (p, q) for p in np.ndindex(*size) for q in np.ndindex(*kernel.shape[:2])
    ):
        own = x[:, i, j].reshape(n, groups, -1)
        taps = kernel[a, b].reshape(2, groups, channels // groups)
        put = np.einsum("ngc,fgc->ngf", own, taps).reshape(n, -1)
        y[:, i * stride + a * dilation, j * stride + b * dilation] += put
    keep = slice(padding, -padding or None)
    return y[:, keep, keep]


@pytest.mark.parametrize(
    "case", [(2, 1, 1, 1, 1), (3, 0, 2, 1, 2), (2, 1, 0, 2, 2), (1, 2, 0, 1, 4)], ids=str
)
def test_conv_transpose_can_be_pytorchs(case):
    stride, padding, output_padding, dilation, groups = case
    x, kernel = random(0, (2, 4, 3, 4)), random(1, (3, 3, 2, 4))
    ours = ConvTranspose(
        groups * 2,
        3,
        strides=stride,
        padding=dilation * 2 - padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        transpose_kernel=True,
        use_bias=False,
    ).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(ours, scatter(np.float64(x), kernel, *case), rtol=1e-4, atol=1e-5)


def test_groups_of_a_transposed_convolution_without_transpose_kernel_are_laxs():
    x, kernel = random(0, (2, 4, 3, 6)), random(1, (3, 2, 2, 9))
    ours = conv_transpose(x, kernel, strides=(2, 3), padding=(1, 2), groups=3)
    theirs = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(1, 1), (2, 2)],
        lhs_dilation=(2, 3),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    assert_close(ours, theirs)


X = jnp.ones((1, 5, 5, 4))
MISTAKES = {
    "padding is 'FULL'": lambda: Conv(4, 3, padding="FULL"),
    "padding is 'REFLECT'": lambda: ConvTranspose(4, 3, padding="REFLECT"),
    "padding is 'CAUSAL'": lambda: Conv(4, 3, padding="CAUSAL"),
    r"padding is \(1,\)": lambda: Conv(4, 3, padding=(1,)),
    r"padding is \(\(1, 2, 3\), 1\)": lambda: ConvTranspose(4, 3, padding=((1, 2, 3), 1)),  # pyright: ignore
    "strides is": lambda: Conv(4, 3, strides=(1, 1, 1)),
    "dilation is": lambda: ConvTranspose(4, 3, dilation=(1, 1, 1)),
    "kernel_size is": lambda: Conv(4, (3, 3, 3, 3)),
    "output_padding": lambda: ConvTranspose(4, 3, padding="CIRCULAR", output_padding=1),
    "groups is 3": lambda: Conv(3, 3, groups=3),
    "mask has shape": lambda: Conv(4, 3, mask=jnp.ones((3, 3))),
    "groups and feature_group_count": lambda: Conv(4, 3, groups=2, feature_group_count=2),
    "dilation and kernel_dilation": lambda: ConvTranspose(4, 3, dilation=2, kernel_dilation=2),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line(message):
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(lambda x: MISTAKES[message]().init(jax.random.key(0), x), X)
    assert "\n" not in str(error.value)


def test_numpys_integers_are_integers():
    n, x = np.int64, random(0, (2, 7, 6, 4))
    kernel = random(1, (3, 2, 2, 6))
    ours = conv(
        x, kernel, strides=n(2), padding=(n(1), n(0)), dilation=np.array([1, 2]), groups=n(2)
    )
    assert_close(ours, conv(x, kernel, strides=2, padding=(1, 0), dilation=(1, 2), groups=2))
    layer = Conv(n(6), n(3), strides=[n(2), 1], padding=n(1), groups=n(2))
    assert jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape == (2, 4, 6, 6)


def value_and_transposes(f, x, kernel):
    y, transpose = jax.vjp(f, x, kernel)
    return y, transpose(jnp.ones_like(y))


EMPTY = [
    ((0, 6, 6, 4), (3, 3, 1, 4), {"groups": 4}),
    ((0, 6, 6, 4), (3, 3, 2, 4), {"groups": 2, "strides": 2}),
    ((0, 6, 6, 1), (3, 3, 1, 4), {"strides": 2}),
    ((2, 3, 6, 1), (5, 5, 1, 2), {"padding": "VALID"}),
    ((2, 3, 6, 4), (5, 5, 1, 4), {"padding": "VALID", "groups": 4, "strides": 2}),
    ((2, 3, 6, 4), (5, 5, 4, 2), {"padding": "VALID", "strides": 2}),
    ((2, 4, 4, 0), (3, 3, 0, 4), {}),
    ((2, 4, 4, 3), (3, 3, 3, 0), {}),
]


@pytest.mark.parametrize(("x", "kernel", "arguments"), EMPTY, ids=str)
def test_nothing_gives_laxs_nothing(x, kernel, arguments):
    x, kernel = jnp.ones(x), jnp.ones(kernel)
    ours, theirs = (
        value_and_transposes(functools.partial(f, **arguments), x, kernel) for f in (conv, lax_conv)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_no_examples(axes):
    x, kernel = ((0,) * (axis == 0) for axis in axes)
    x, kernel = jnp.ones((*x, 2, 5, 5, 4)), jnp.ones((*kernel, 3, 3, 1, 4))
    f = functools.partial(value_and_transposes, functools.partial(conv, groups=4))
    y, gradients = jax.vmap(f, axes)(x, kernel)
    shapes = (0, 2, 5, 5, 4), (0, 2, 5, 5, 4), (0, 3, 3, 1, 4)
    assert (y.shape, *(g.shape for g in gradients)) == shapes


def test_half_precision_is_summed_in_float32_and_rounded_once():
    dtype, name = jnp.bfloat16, "depthwise, 2 filters each"
    (_, *image), kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, (16, *image)).astype(dtype), random(1, kernel_shape).astype(dtype)
    f, exact = (functools.partial(f, **arguments) for f in (conv, lax_conv))
    ours = value_and_transposes(f, x, kernel)
    wide = value_and_transposes(exact, x.astype(jnp.float32), kernel.astype(jnp.float32))
    for half, single in zip(jax.tree.leaves(ours), jax.tree.leaves(wide), strict=True):
        assert half.dtype == dtype
        error, rounding = (
            jnp.linalg.norm(a.astype(jnp.float32) - single) for a in (half, single.astype(dtype))
        )
        assert error <= 1.01 * rounding


def test_float16_does_not_overflow_on_the_way():
    x, taps = jnp.full((1, 1, 3, 2), 60000, jnp.float16), jnp.asarray([1, 1, -1], jnp.float16)
    kernel = jnp.broadcast_to(taps[None, :, None, None], (1, 3, 1, 2))
    np.testing.assert_array_equal(conv(x, kernel, padding="VALID", groups=2), x[:, :, :1])


def test_complex_is_lax():
    x, kernel = (lax.complex(random(0, s), random(1, s)) for s in ((2, 5, 4, 4), (3, 2, 2, 4)))
    ours, theirs = (
        value_and_transposes(functools.partial(f, groups=2), x, kernel) for f in (conv, lax_conv)
    )
    assert_close(ours, theirs)


def test_strict_promotion():
    x = random(0, (2, 5, 4, 4))
    layers = [
        Conv(4, 3, groups=2, mask=np.ones((3, 3, 2, 4), bool)),
        Conv(4, 3, dtype=jnp.bfloat16),
    ]
    layers += [ConvTranspose(4, 3, padding="CIRCULAR"), DepthwiseConv(3, dtype=jnp.float16)]
    with jax.numpy_dtype_promotion("strict"):
        for layer in layers:
            variables = jax.eval_shape(layer.init, jax.random.key(0), x)

            def loss(variables, x, layer=layer):
                return layer.apply(variables, x).astype(jnp.float32).sum()

            for dtype in (jnp.float32, jnp.bfloat16):
                _, dx = jax.eval_shape(jax.grad(loss, (0, 1)), variables, x.astype(dtype))
                assert dx.dtype == dtype


def test_jet_is_laxs():
    x_shape, kernel_shape, arguments = FORMS["depthwise / 2"]
    x, kernel = random(0, x_shape), random(1, kernel_shape)
    ours, theirs = (
        jet(
            lambda x, k, f=f: f(jnp.sin(x), k, **arguments),
            (x, kernel),
            ((x, x), (kernel, -kernel)),
        )
        for f in (conv, lax_conv)
    )
    assert_close(ours, theirs)
    layer, kernel = Conv(2, 3), random(2, (3, 3, x.shape[-1], 2))
    params = {"kernel": kernel, "bias": jnp.ones(2)}
    _, (slope,) = jet(lambda x: layer.apply({"params": params}, x), (x,), ((x,),))
    assert_close(slope, lax_conv(x, kernel))
