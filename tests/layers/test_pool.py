import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.layers import avg_pool, global_avg_pool, global_max_pool, max_pool

# window, strides, padding
WINDOWS = [
    ((2, 2), (2, 2), "VALID"),
    ((2, 2), (2, 2), "SAME"),
    ((3, 3), (3, 3), "SAME"),
    ((3, 2), (3, 2), "VALID"),
    ((3, 3), (2, 2), "VALID"),
    ((3, 3), (2, 2), "SAME"),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((3, 3), (1, 1), "SAME"),
    ((2, 3), None, "VALID"),
    ((1, 1), (2, 2), "VALID"),
]


def ties(*shape):
    """Draws integers of four values, so that most windows have several maxima."""
    return jnp.asarray(np.random.default_rng(0).integers(-2, 2, shape), jnp.float32)


def weights(like):
    return jnp.asarray(np.random.default_rng(1).normal(size=like.shape), like.dtype)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(pool, x):
    y, transpose = jax.vjp(pool, x)
    return y, transpose(weights(y))[0]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool_and_its_gradient_are_flax_with_ties(window):
    x = ties(2, 7, 8, 3)
    ours = functools.partial(_call, max_pool, window)
    theirs = functools.partial(_call, nn.max_pool, window)
    (y, dx), (expected_y, expected_dx) = (value_and_gradient(f, x) for f in (ours, theirs))
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-6)


def test_max_pool_gradient_goes_to_the_first_maximum():
    x = jnp.ones((1, 2, 2, 1))
    dx = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(x)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("window", WINDOWS[::2], ids=str)
def test_max_pool_of_every_order(window):
    x = weights(jnp.zeros((2, 6, 6, 2)))

    def orders(pool, x):
        def f(x):
            return jnp.sin(_call(pool, window, x)).sum()

        dx = jnp.cos(x)
        first, second = jax.jvp(jax.grad(f), (x,), (dx,))
        third = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), dx))(x)
        return first, second, third, jax.vmap(jax.grad(f))(jnp.stack([x, dx]))

    first, second, third, mapped = jax.jit(functools.partial(orders, max_pool))(x)
    np.testing.assert_allclose(second, third, rtol=1e-5, atol=1e-6)
    reference = jax.grad(lambda x: jnp.sin(_call(nn.max_pool, window, x)).sum())
    np.testing.assert_allclose(first, reference(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mapped[1], reference(jnp.cos(x)), rtol=1e-5, atol=1e-6)
    epsilon = 1e-3  # no maximum changes hands within it
    slope = (reference(x + epsilon * jnp.cos(x)) - reference(x - epsilon * jnp.cos(x))) / (
        2 * epsilon
    )
    np.testing.assert_allclose(second, slope, atol=1e-3)


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[5]], ids=str)
def test_gradient_selects_elementwise(window):
    ours, theirs = (
        jax.jit(jax.grad(lambda x, pool=pool: _call(pool, window, x).sum())).lower(ties(2, 8, 8, 3))
        for pool in (max_pool, nn.max_pool)
    )
    assert "select_and_scatter" in theirs.as_text()
    assert "scatter" not in ours.as_text() and "scatter(" not in ours.compile().as_text()


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool_and_its_gradient_are_flax(window, count_include_pad):
    x = weights(jnp.zeros((2, 7, 8, 3)))
    arguments = {"count_include_pad": count_include_pad}
    ours = functools.partial(_call, avg_pool, window, **arguments)
    theirs = functools.partial(_call, nn.avg_pool, window, **arguments)
    for actual, expected in zip(
        value_and_gradient(ours, x), value_and_gradient(theirs, x), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_global_pools():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(global_avg_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(global_max_pool(jnp.asarray(x)), x.max((1, 2)))
    dx = jax.grad(lambda x: global_max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_bfloat16_stays(pool):
    assert pool(ties(1, 4, 4, 1).astype(jnp.bfloat16), (2, 2), (2, 2)).dtype == jnp.bfloat16


def _call(pool, window, x, **arguments):
    window_shape, strides, padding = window
    return pool(x, window_shape, strides, padding, **arguments)
