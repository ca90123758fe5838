import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from flaxcnn.errors import UserError
from flaxcnn.layers import (
    adaptive_avg_pool,
    avg_pool,
    channel_max_pool,
    global_avg_pool,
    global_max_pool,
    l2_pool,
    max_pool,
    pool_max,
    roi_max_pool,
)
from flaxcnn.layers.pool_windows import place_windows

TORCH = json.loads((Path(__file__).parents[1] / "reference" / "torch_pool.json").read_text())
POOLS = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}

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


def test_a_number_is_a_border_on_every_side():
    x = ties(1, 5, 6, 2)
    border = ((1, 1), (1, 1))
    for pool in POOLS.values():
        assert np.array_equal(pool(x, (3, 3), (2, 2), 1), pool(x, (3, 3), (2, 2), border))


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(pool, x):
    y, transpose = jax.vjp(pool, x)
    return y, transpose(weights(y))[0]


@pytest.mark.sample(5)
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


@pytest.mark.sample(2)
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


# window, strides, padding, ceil_mode
MAXIMA = [*((*window, False) for window in WINDOWS), ((3, 2), (2, 2), 1, True)]


@pytest.mark.sample(3)
@pytest.mark.parametrize("arguments", MAXIMA, ids=str)
def test_max_pool_on_a_tpu_is_that_of_taps(arguments):
    x = ties(2, 7, 8, 3)
    special = x.at[0, 3, 3].set(jnp.nan).at[1, 0, 7].set(jnp.inf).at[1, 4:, :4].set(-jnp.inf)
    x, dx = jnp.concatenate([x, special]), jnp.cos(weights(jnp.zeros((4, 7, 8, 3))))
    windows = place_windows(x, *arguments)

    @jax.jit
    def every_map(x, dx):
        y = pool_max.max_by_taps(x, windows)
        forward = pool_max.select_by_taps(x, y, dx, windows)
        dy = weights(y)
        taps, window = (
            spread(x, y, dy, windows)
            for spread in (pool_max.spread_by_taps, pool_max.spread_by_window)
        )
        return (y, pool_max.max_by_window(x, windows)), (taps, window), (forward, dy)

    (y, y_window), (taps, window), (forward, dy) = every_map(x, dx)
    np.testing.assert_array_equal(y, y_window, strict=True)
    np.testing.assert_allclose(window, taps, rtol=1e-6, atol=1e-6)
    # Derivatives of every order: the two linear maps are each other's transpose.
    np.testing.assert_allclose(jnp.vdot(forward, dy), jnp.vdot(dx, window), rtol=1e-4)
    if not arguments[-1]:
        _, transpose = jax.vjp(lambda x: nn.max_pool(x, *arguments[:-1]), x)
        np.testing.assert_allclose(window[:2], transpose(dy)[0][:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platforms", [["tpu"], ["cuda"], ["cpu", "tpu"]], ids=str)
def test_exported_maxima_are_window_operations_on_a_tpu_alone(platforms):
    (count,) = export.symbolic_shape("n")
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(max_pool(x, (3, 3), (2, 2), "SAME")).sum()))
    x = ties(2, 5, 6, 2)
    exported = export.export(gradient, platforms=platforms)(
        jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    )
    text = exported.mlir_module()
    assert ("select_and_scatter" in text) == ("reduce_window" in text) == ("tpu" in platforms)
    if "cpu" in platforms:
        np.testing.assert_allclose(exported.call(x), gradient(x), rtol=1e-6)


def test_examples_under_vmap_share_their_images():
    x = weights(jnp.zeros((1, 4, 5, 1)))
    pool, flax_pool = (lambda x, f=f: f(x, (3, 3), (2, 2), "SAME") for f in (max_pool, nn.max_pool))
    windows = place_windows(x, (3, 3), (2, 2), "SAME", False)

    @jax.jit
    def jacobians(x):
        y = pool(x)
        rows = jnp.eye(y.size).reshape(y.size, *y.shape)
        on_tpu = pool_max.spread_by_window(x[None], y[None], rows, windows)
        ours = jax.jacrev(pool)(x), jax.jacfwd(pool)(x), on_tpu.reshape(*y.shape, *x.shape)
        shared = jax.vmap(lambda x: jax.jvp(pool, (x,), (jnp.ones(x.shape),))[1])(x)
        return ours, shared, jax.jacrev(flax_pool)(x)

    ours, shared, expected = jacobians(x)
    for jacobian in ours:
        np.testing.assert_array_equal(jacobian, expected)
    np.testing.assert_array_equal(shared, jnp.ones_like(shared))


def test_devices_of_a_shard_map_keep_their_gradients():
    x = ties(8, 5, 6, 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def gradient(x):
        return jax.grad(lambda x: jnp.sin(max_pool(x, (3, 3), (2, 2), "SAME")).sum())(x)

    divided = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    for platform in ("cpu", "tpu"):
        text = export.export(divided, platforms=[platform])(x).mlir_module()
        assert "all_reduce" not in text
    np.testing.assert_allclose(divided(x), jax.jit(gradient)(x), rtol=1e-6)


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[5]], ids=str)
def test_gradient_off_the_tpu_selects_elementwise(window):
    ours, theirs = (
        jax.jit(jax.grad(lambda x, pool=pool: _call(pool, window, x).sum())).lower(ties(2, 8, 8, 3))
        for pool in (max_pool, nn.max_pool)
    )
    assert "select_and_scatter" in theirs.as_text()
    assert "scatter" not in ours.as_text() and "scatter(" not in ours.compile().as_text()


@pytest.mark.sample(6)
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


def test_adaptive_pool_averages_bins_that_overlap():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    y = adaptive_avg_pool(jnp.asarray(x), (2, 4))
    assert y.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(y[:, 0, 0], x[:, :3, :1].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(y[:, 1, 1], x[:, 2:, 0:2].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(y[:, 1, 2], x[:, 2:, 1:3].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(y[:, 0, 3], x[:, :3, 2:].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(adaptive_avg_pool(jnp.asarray(x), (5, 3)), x)


@pytest.mark.sample(8)
@pytest.mark.parametrize("case", TORCH["windows"], ids=lambda case: case["pool"])
def test_pools_and_their_gradients_are_pytorchs(case):
    window, strides, pad, ceil_mode, *count_include_pad = case["arguments"].values()
    window, strides = tuple(window), tuple(strides)
    x = jnp.asarray(TORCH["ties" if case["pool"] == "max_pool" else "normal"], jnp.float32)

    @jax.jit
    def value_and_gradient(x):
        y, transpose = jax.vjp(
            lambda x: POOLS[case["pool"]](
                x, window, strides, [(size, size) for size in pad], *count_include_pad, ceil_mode
            ),
            x,
        )
        dy = jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) % 7 - 3
        return y, transpose(dy)[0]

    y, dx = value_and_gradient(x)
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, case["dx"], rtol=1e-5, atol=2e-6)


def starts_of_windows(size, window, stride, border):
    low, high = border
    return [
        start
        for start in range(0, low + size, stride)  # in the image or its left padding
        if start - stride + window < low + size + high  # the one before did not reach the end
    ]


@pytest.mark.sample(6)
@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("borders", [((0, 0), (1, 1)), ((0, 1), (1, 0))], ids=str)
def test_ceil_mode_is_a_loop_over_windows(window, stride, borders):
    x = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    rows, cols = (
        starts_of_windows(size, window, stride, border)
        for size, border in zip(x.shape, borders, strict=True)
    )
    for pool, value, reduce in [(max_pool, -np.inf, np.max), (avg_pool, 0, np.mean)]:
        padded = np.pad(x, borders, constant_values=value)
        expected = [
            [reduce(padded[i : i + window, j : j + window]) for j in cols] for i in rows
        ]  # a slice ends with its array: what sticks out of the border is left out
        pooled = jax.jit(pool, static_argnums=(1, 2, 3), static_argnames="ceil_mode")(
            x[None, :, :, None], (window, window), (stride, stride), borders, ceil_mode=True
        )
        np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_ceil_mode_adds_nothing_to_same_padding():
    x = ties(1, 7, 8, 2)
    for window, strides in [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((1, 1), (3, 3))]:
        np.testing.assert_array_equal(
            max_pool(x, window, strides, "SAME", ceil_mode=True),
            nn.max_pool(x, window, strides, "SAME"),
        )


@pytest.mark.sample(4)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_l2_pool_is_the_root_of_a_window_sum(window):
    x = weights(jnp.zeros((2, 7, 8, 3)))
    shape, strides, padding = window
    if not isinstance(padding, str):
        padding = ((0, 0), *padding, (0, 0))
    strides = (1, *(strides or (1, 1)), 1)
    total = jax.lax.reduce_window(x * x, 0.0, jax.lax.add, (1, *shape, 1), strides, padding)
    np.testing.assert_allclose(_call(l2_pool, window, x), np.sqrt(total), rtol=1e-5)


def test_derivatives_of_l2_pool_at_zeros_are_zero():
    def f(x):
        return l2_pool(x, (2, 2), (2, 2)).sum()

    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(2.0)
    first, second = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_array_equal(first, x / 2)  # the other windows hold zeros only
    assert np.isfinite(second).all()
    np.testing.assert_array_equal(second[0, 2:], 0)


def test_channel_max_pool():
    x = ties(2, 3, 4, 6)
    expected = np.stack([np.asarray(x)[..., i : i + 3].max(-1) for i in (0, 3)], -1)
    np.testing.assert_array_equal(channel_max_pool(x, 3), expected)
    dx = jax.grad(lambda x: channel_max_pool(x, 3).sum())(x)
    groups = np.asarray(x).reshape(2, 3, 4, 2, 3)
    first = groups.argmax(-1)[..., None] == np.arange(3)
    np.testing.assert_array_equal(dx, first.reshape(x.shape))
    for group_size in (0, 4):
        with pytest.raises(UserError, match="does not divide 6"):
            channel_max_pool(x, group_size)


BOXES = np.array(
    [
        [0, 0, 0, 11, 9],
        [1, 1, 3, 8, 12],
        [1, -6, -3, 5, 5],  # clipped at the top left; -3 / 2 rounds away from zero
        [0, 7, 5, 30, 22],  # clipped at the bottom right
        [0, 40, 40, 60, 60],  # outside
        [1, 9, 9, 4, 4],  # reversed: one pixel
        [0, 2.9, 3.1, 3.2, 9.7],
        [-1, 0, 0, 11, 9],  # of no image
    ],
    np.float32,
)


def round_half_away(value):
    return int(np.copysign(np.floor(abs(value) + 0.5), value))


def loop_roi(x, boxes, output_size, scale):
    """Pools by the loops of Fast R-CNN, and returns the gradient of the sum too, ties to first."""
    _, height, width, channels = x.shape
    y, dx = np.zeros((len(boxes), *output_size, channels)), np.zeros(x.shape)
    for r, (image, *corners) in enumerate(boxes):
        x1, y1, x2, y2 = (round_half_away(corner * scale) for corner in corners)
        bin_height = max(y2 - y1 + 1, 1) / output_size[0]
        bin_width = max(x2 - x1 + 1, 1) / output_size[1]
        for i, j in np.ndindex(*output_size):
            top = np.clip(int(np.floor(i * bin_height + 1e-9)) + y1, 0, height)
            bottom = np.clip(int(np.ceil((i + 1) * bin_height - 1e-9)) + y1, 0, height)
            left = np.clip(int(np.floor(j * bin_width + 1e-9)) + x1, 0, width)
            right = np.clip(int(np.ceil((j + 1) * bin_width - 1e-9)) + x1, 0, width)
            if image < 0 or top >= bottom or left >= right:
                continue
            for c in range(channels):
                values = x[int(image), top:bottom, left:right, c]
                row, col = np.unravel_index(values.argmax(), values.shape)
                y[r, i, j, c] = values[row, col]
                dx[int(image), top + row, left + col, c] += 1
    return y, dx


@pytest.mark.parametrize("output_size, scale", [((2, 3), 0.5), ((7, 7), 0.5), ((3, 2), 1.0)])
def test_roi_max_pool_and_its_gradient_are_loops_with_ties(output_size, scale):
    x = ties(2, 8, 7, 3)

    @jax.jit
    def value_and_gradient(x):
        y, transpose = jax.vjp(lambda x: roi_max_pool(x, jnp.asarray(BOXES), output_size, scale), x)
        return y, transpose(jnp.ones_like(y))[0]

    y, dx = value_and_gradient(x)
    expected_y, expected_dx = loop_roi(np.asarray(x), BOXES, output_size, scale)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)


def test_roi_bins_are_exact():
    x = jnp.arange(64, dtype=jnp.float32).reshape(1, 64, 1, 1)
    box = jnp.array([[0, 0, 0, 0, 56.0]])  # in float32, 57 / 7 * 7 > 57
    np.testing.assert_array_equal(roi_max_pool(x, box, (7, 1))[0, -1], [[56]])


def test_roi_max_pool_maps_over_images_and_boxes():
    x, boxes = (
        ties(3, 2, 8, 7, 2),
        np.stack([BOXES, BOXES[::-1], BOXES + np.float32([0, 1, 1, 1, 1])]),
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    @jax.grad
    def gradient(x, boxes):
        return roi_max_pool(x, boxes, (2, 2)).sum()

    assert "scatter(" not in gradient.lower(x, boxes).compile().as_text()
    for actual, image, box in zip(gradient(x, boxes), x, boxes, strict=True):
        np.testing.assert_array_equal(actual, loop_roi(np.asarray(image), box, (2, 2), 1.0)[1])


EVERY_POOL = {
    "max_pool": functools.partial(
        max_pool, window_shape=(3, 2), strides=(2, 1), padding=((1, 1), (1, 0)), ceil_mode=True
    ),
    "avg_pool": functools.partial(
        avg_pool, window_shape=(3, 2), strides=(2, 1), padding=((1, 1), (1, 0)), ceil_mode=True
    ),
    "l2_pool": functools.partial(l2_pool, window_shape=(2, 2), strides=(2, 2), ceil_mode=True),
    "channel_max_pool": functools.partial(channel_max_pool, group_size=3),
    "adaptive_avg_pool": functools.partial(adaptive_avg_pool, output_size=(4, 2)),
    "global_avg_pool": global_avg_pool,
    "global_max_pool": global_max_pool,
    "roi_max_pool": functools.partial(
        roi_max_pool,
        boxes=jnp.array([[0, 0, 0, 3, 3.0], [1, 1, 2, 4, 4]]),
        output_size=(2, 2),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in (*POOLS, "adaptive_avg_pool") else [pytest.mark.zoo])
        for n in EVERY_POOL
    ],
)
def test_derivatives_are_finite_differences_without_scatter(name):
    # Distinct values a finite difference cannot reorder.
    x = np.random.default_rng(0).permutation(2 * 6 * 5 * 3).reshape(2, 6, 5, 3) / 60 - 1.5
    x = jnp.asarray(x, jnp.float32)

    def f(x):
        return jnp.sin(EVERY_POOL[name](x))

    modes = ["rev"] if name == "roi_max_pool" else ["fwd", "rev"]  # its loop compiles for seconds
    check_grads(jax.jit(f), (x,), order=2, modes=modes, atol=2e-2, rtol=2e-2, eps=2e-3)
    text = jax.jit(jax.grad(lambda x: f(x).sum())).lower(x).compile().as_text()
    assert "scatter(" not in text and "reduce-window(" not in text


@pytest.mark.parametrize("name", EVERY_POOL)
def test_half_precision_stays_and_maps(name):
    pool, x = EVERY_POOL[name], ties(2, 2, 6, 5, 3).astype(jnp.bfloat16)
    y = jax.jit(jax.vmap(pool))(x)
    assert y.dtype == jnp.bfloat16
    for mapped, images in zip(y, x, strict=True):
        # Eight bits of mantissa: the sums are float32.
        np.testing.assert_allclose(
            mapped.astype(jnp.float32), jax.jit(pool)(images.astype(jnp.float32)), rtol=2**-8
        )


def test_means_of_integers_are_not_truncated():
    x = jnp.array([[0, 1], [2, 4]]).reshape(1, 2, 2, 1)
    for y in (
        avg_pool(x, (2, 2)),
        adaptive_avg_pool(x, (1, 1)),
        global_avg_pool(x),
        l2_pool(x, (2, 2)) ** 2 / 12,
        avg_pool(x.astype(jnp.uint8), (2, 2), padding=1, count_include_pad=False)[:, 1:2, 1:2],
    ):
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y.ravel(), [1.75])
    assert avg_pool(x > 0, (2, 2)).item() == 0.75


@pytest.mark.parametrize("dtype", [jnp.int8, bool])
def test_maxima_keep_the_dtype_of_integers(dtype):
    x = (ties(1, 4, 6, 2) - 3 * (dtype == jnp.int8)).astype(dtype)
    floats = x.astype(jnp.float32)
    for pool in (
        functools.partial(max_pool, window_shape=(3, 3), strides=(2, 2), padding=1),
        functools.partial(roi_max_pool, boxes=jnp.array([[0, 0, 0, 3, 3.0]]), output_size=(2, 2)),
        global_max_pool,
    ):
        y = jax.jit(pool)(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, jax.jit(pool)(floats))


# shape, window, strides, padding
RANKS = [
    ((2, 7, 3), (3,), (2,), "SAME"),
    ((1, 4, 5, 6, 2), (2, 2, 3), (2, 2, 3), "VALID"),
    ((5, 6, 2), (2, 2), (2, 1), ((0, 1), (1, 0))),
    ((2, 3, 3, 4, 2), (2, 3), (2, 2), "SAME"),
]


@pytest.mark.parametrize("case", RANKS, ids=str)
def test_the_window_tells_the_axes_as_in_flax(case):
    shape, *window = case
    x = ties(*shape)
    for ours, theirs in ((max_pool, nn.max_pool), (avg_pool, nn.avg_pool)):
        pairs = (value_and_gradient(functools.partial(_call, f, window), x) for f in (ours, theirs))
        for actual, expected in zip(*pairs, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_numbers_may_be_numpys_and_stand_for_every_axis():
    x = ties(1, 6, 7, 2)
    for pool in POOLS.values():
        expected = pool(x, (3, 3), (2, 2), ((1, 1), (2, 2)))
        two, three = np.int64(2), np.array([3, 3])
        np.testing.assert_array_equal(pool(x, tuple(three), two, (np.int32(1), two)), expected)
        np.testing.assert_array_equal(pool(x, np.int8(3), np.array([2, 2]), (1, 2)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 2), (2, 2), "CIRCULAR"), "padding is 'CIRCULAR'"),
        (((2, 2), (2, 2), "full"), "padding is 'full'"),
        (((2, 2), (2, 2, 2)), "strides"),
        (((2, 0),), "must be at least 1"),
        (((2, 2, 2, 2),), "no window of"),
    ],
)
def test_what_no_pool_understands_is_refused(arguments, message):
    for pool in POOLS.values():
        with pytest.raises(UserError, match=message):
            pool(jnp.ones((1, 4, 4, 2)), *arguments)


def test_complex_values_have_means_and_no_maxima():
    x = jnp.array([1 + 1j, 3 - 1j, 2j, 0]).reshape(1, 2, 2, 1)
    for y in (avg_pool(x, (2, 2)), global_avg_pool(x), adaptive_avg_pool(x, 1)):
        np.testing.assert_allclose(y.ravel(), [1 + 0.5j])
    for pool in ("max_pool", "l2_pool", "global_max_pool", "channel_max_pool", "roi_max_pool"):
        with pytest.raises(UserError, match="complex values are not supported"):
            EVERY_POOL[pool](jnp.concatenate([x] * 3, -1))


@pytest.mark.parametrize("case", [((2, 2, 6, 3), 3), ((2, 6, 1, 3), 2)], ids=str)
def test_windows_that_do_not_fit_give_nothing(case):
    shape, window = case
    x = jnp.ones(shape)
    expected = nn.max_pool(x, (window, window), (2, 2)).shape

    @jax.jit
    def gradients(x):
        results = []
        for pool in POOLS.values():
            for strides in (2, window):
                pooled = functools.partial(pool, window_shape=window, strides=strides)
                y, transpose = jax.vjp(pooled, x)
                results.append((y, transpose(y)[0]))
        return results

    for (y, dx), strides in zip(gradients(x), (2, window) * 3, strict=True):
        assert y.size == 0 and (strides != 2 or y.shape == expected)
        np.testing.assert_array_equal(dx, jnp.zeros(shape))


def test_no_examples_and_maps_without_pixels():
    none = jax.ShapeDtypeStruct((0, 6, 5, 3), jnp.float32)
    for name, pool in EVERY_POOL.items():
        y = jax.eval_shape(pool, none)
        assert y.shape[0] == (2 if name == "roi_max_pool" else 0)
        assert jax.eval_shape(jax.grad(lambda x: pool(x).sum()), none) == none  # noqa: B023
    for name in ("global_avg_pool", "global_max_pool", "adaptive_avg_pool", "roi_max_pool"):
        with pytest.raises(UserError, match=f"{name}: maps of shape .* have no pixels"):
            EVERY_POOL[name](jnp.ones((2, 0, 5, 3)))


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[5]], ids=str)
def test_export_with_symbolic_height_and_width(window):
    shape = export.symbolic_shape("n, h, w, 3")

    def pools(x):
        average = _call(avg_pool, window, x, count_include_pad=False)
        return _call(max_pool, window, x), average

    exported = export.export(jax.jit(pools))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = ties(2, 7, 8, 3)
    for y, expected in zip(jax.jit(exported.call)(x), jax.jit(pools)(x), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_not_a_number_reaches_its_windows_only():
    x = ties(1, 4, 4, 1).at[0, 0, 1, 0].set(jnp.nan).at[0, 3, 3, 0].set(-jnp.inf)
    for pool, reference in ((max_pool, nn.max_pool), (avg_pool, nn.avg_pool)):
        np.testing.assert_array_equal(
            pool(x, (2, 2), (2, 2)), reference(x, (2, 2), (2, 2)), strict=True
        )
    assert jnp.isnan(global_max_pool(x)).all()


def test_jet_passes_through_maxima():
    x, step = weights(jnp.zeros((1, 4, 5, 2))), ties(1, 4, 5, 2)

    def along(pool, t):
        y = x + t * step
        return jnp.sin(pool(y * y, (3, 3), (2, 2), "SAME"))

    zero, one = jnp.zeros(()), jnp.ones(())
    ours, (first, second) = jet(functools.partial(along, max_pool), (zero,), ((one, zero),))
    slope = functools.partial(jax.jvp, functools.partial(along, nn.max_pool))
    (theirs, expected), (_, curvature) = jax.jvp(lambda t: slope((t,), (one,)), (zero,), (one,))
    for actual, desired in ((ours, theirs), (first, expected), (second, curvature)):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


def test_jet_passes_through_means():
    x, step = ties(1, 4, 4, 2), weights(jnp.zeros((1, 4, 4, 2)))

    @functools.partial(jax.jit, static_argnums=0)
    def coefficients(f, x):
        return jet(lambda x: f(x * x), (x,), ((step, jnp.zeros_like(step)),))

    y, (first, second) = coefficients(lambda x: avg_pool(x, (2, 2), (2, 2)), x)
    for ours, square in ((y, x * x), (first, 2 * x * step), (second, 2 * step * step)):
        np.testing.assert_allclose(ours, nn.avg_pool(square, (2, 2), (2, 2)), rtol=1e-5, atol=1e-6)


def every_pool_and_gradient(x):
    """But that over regions, whose result has no batch of images."""
    pools = {name: pool for name, pool in EVERY_POOL.items() if name != "roi_max_pool"}
    pools |= {"halves": lambda x: avg_pool(max_pool(x, (2, 1), (2, 1)), (1, 2), (1, 2))}
    pairs = {}
    for name, pool in pools.items():
        y, transpose = jax.vjp(pool, x)
        pairs[name] = y, transpose(jnp.cos(y))[0]
    return pairs


def test_every_pool_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.bfloat16, jnp.float32):
            x = jax.ShapeDtypeStruct((2, 6, 5, 3), dtype)
            for leaf in jax.tree.leaves(jax.eval_shape(every_pool_and_gradient, x)):
                assert leaf.dtype == dtype
            assert jax.eval_shape(jax.grad(lambda x: EVERY_POOL["roi_max_pool"](x).sum()), x)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_a_divided_batch_stays_divided(axis_type):
    x = ties(16, 6, 5, 3)
    one = jax.jit(every_pool_and_gradient).lower(x).compile()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, P("data")))
        compiled = jax.jit(every_pool_and_gradient).lower(split).compile()
        actual = compiled(split)
    assert "all-gather" not in compiled.as_text()
    assert compiled.cost_analysis()["flops"] < one.cost_analysis()["flops"] / 7
    for ours, expected in zip(jax.tree.leaves(actual), jax.tree.leaves(one(x)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        assert ours.sharding.is_equivalent_to(split.sharding, ours.ndim)


def _call(pool, window, x, **arguments):
    window_shape, strides, padding = window
    return pool(x, window_shape, strides, padding, **arguments)
