"""Convolutions as `lax` has them, and one of each kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUTS = {3: ("NHC", "HIO", "NHC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NHWDC", "HWDIO", "NHWDC")}

# (images, kernel, arguments): a way of conv_cpu.py each, and sizes that leave a rest.
FORMS = {
    "3x3 / 2": ((2, 7, 6, 3), (3, 3, 3, 4), {"strides": 2}),
    "3x3 / 2 on even sizes": ((2, 8, 6, 3), (3, 3, 3, 4), {"strides": 2}),
    "3x3 / 2 padded by 1": (
        (2, 8, 6, 3),
        (3, 3, 3, 4),
        {"strides": 2, "padding": ((1, 1), (1, 1))},
    ),
    "7x7 / 2, many channels": ((1, 13, 12, 9), (7, 7, 9, 2), {"strides": 2}),
    "11x11 / 4": ((1, 23, 22, 3), (11, 11, 3, 2), {"strides": 4, "padding": "VALID"}),
    "2x3 / (3, 1)": ((2, 9, 5, 3), (2, 3, 3, 4), {"strides": (3, 1), "padding": "VALID"}),
    "cropped": ((2, 9, 8, 3), (3, 2, 3, 4), {"strides": 2, "padding": ((-1, 2), (1, -2))}),
    "1x1": ((2, 5, 4, 3), (1, 1, 3, 4), {}),
    "1x1 / 2": ((2, 7, 6, 3), (1, 1, 3, 4), {"strides": 2}),
    "1x1 / 2, padded and cropped": (
        (2, 7, 6, 3),
        (1, 1, 3, 4),
        {"strides": 2, "padding": ((1, 2), (-1, 0))},
    ),
    "dilated": ((2, 9, 8, 3), (3, 2, 3, 4), {"dilation": (2, 3)}),
    "dilated / 2": ((2, 9, 8, 3), (3, 2, 3, 4), {"dilation": 2, "strides": 2}),
    "2 groups": ((2, 5, 4, 6), (3, 3, 3, 4), {"groups": 2}),
    "3 groups / 2": ((2, 7, 6, 6), (3, 3, 2, 9), {"groups": 3, "strides": 2}),
    "depthwise": ((2, 5, 4, 6), (3, 3, 1, 6), {"groups": 6}),
    "depthwise / 2": ((2, 7, 6, 4), (3, 3, 1, 4), {"groups": 4, "strides": 2}),
    "depthwise, 2 filters each": ((2, 7, 6, 3), (3, 2, 1, 6), {"groups": 3, "strides": (1, 2)}),
    "depthwise, dilated": ((2, 9, 8, 3), (3, 3, 1, 3), {"groups": 3, "dilation": 2}),
    "one dimension": ((2, 9, 3), (4, 3, 5), {"strides": 2}),
    "three dimensions": ((1, 5, 4, 6, 2), (3, 2, 3, 2, 3), {"strides": (1, 2, 2)}),
    "three dimensions, depthwise": ((1, 4, 3, 5, 2), (2, 3, 3, 1, 2), {"groups": 2}),
}


def random(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_conv(x, kernel, *, strides=1, padding="SAME", dilation=1, groups=1):
    rank = x.ndim - 2
    strides, dilation = (
        (value,) * rank if isinstance(value, int) else value for value in (strides, dilation)
    )
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUTS[x.ndim],
        feature_group_count=groups,
    )


def assert_close(actual, expected):
    def check(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5 * scale)

    jax.tree.map(check, actual, expected)


def derivatives(f):
    """Value, gradient, and the gradient of a function of the gradient."""

    def gradient(x, kernel):
        return jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))(x, kernel)

    def second(x, kernel):
        return jax.grad(lambda x, k: sum(jnp.sin(g).sum() for g in gradient(x, k)), (0, 1))(
            x, kernel
        )

    return lambda x, kernel: (f(x, kernel), gradient(x, kernel), second(x, kernel))


def gradient(f, arguments):
    f = functools.partial(f, **arguments)
    return jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))
