import functools
import json
from pathlib import Path

import flax.linen
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm, local_response_norm

TORCH = json.loads((Path(__file__).parents[1] / "reference" / "torch_pool.json").read_text())


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def loop_response_norm(x, size, k, alpha, beta):
    """Krizhevsky et al. 2012, section 3.3, with n = size: channels i - n/2 .. i + n/2."""
    y, channels = np.empty(x.shape, np.float64), x.shape[-1]
    for i in range(channels):
        adjacent = x[..., max(0, i - size // 2) : min(channels - 1, i + size // 2) + 1]
        y[..., i] = x[..., i] / (k + alpha * (adjacent.astype(np.float64) ** 2).sum(-1)) ** beta
    return y


@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_local_response_norm_is_its_papers(size):
    x = 10 * normal(2, 3, 3, 7)
    np.testing.assert_allclose(
        local_response_norm(x, size=size), loop_response_norm(x, size, 2, 1e-4, 0.75), rtol=1e-5
    )
    np.testing.assert_allclose(
        local_response_norm(x, size=size, k=1, alpha=0.5, beta=0.5, divide_alpha=True),
        loop_response_norm(x, size, 1, 0.5 / size, 0.5),
        rtol=1e-5,
    )


@pytest.mark.parametrize("case", TORCH["responses"], ids=lambda case: str(case["arguments"]))
def test_local_response_norm_and_its_gradient_are_pytorchs(case):
    x = jnp.asarray(TORCH["channels"], jnp.float32)
    y, transpose = jax.vjp(
        lambda x: local_response_norm(x, divide_alpha=True, **case["arguments"]), x
    )
    np.testing.assert_allclose(y, case["y"], rtol=1e-5, atol=1e-6)
    dy = jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) % 7 - 3
    np.testing.assert_allclose(transpose(dy)[0], case["dx"], rtol=1e-5, atol=5e-6)


def test_local_response_norm_derivatives():
    x = jnp.asarray(normal(2, 2, 2, 6))

    def f(x):
        return local_response_norm(x, size=3, alpha=0.5)

    check_grads(jax.jit(f), (x,), order=2, atol=1e-2, rtol=1e-2, eps=1e-2)
    text = jax.jit(jax.grad(lambda x: f(x).sum())).lower(x).compile().as_text()
    assert "scatter(" not in text and "reduce-window(" not in text
    np.testing.assert_allclose(jax.vmap(f)(x), f(x), rtol=1e-6)


def test_local_response_norm_of_half_precision_is_computed_in_float32():
    x = jnp.asarray(normal(1, 2, 2, 8)).astype(jnp.bfloat16)
    y = local_response_norm(x)
    assert y.dtype == jnp.bfloat16
    expected = loop_response_norm(np.asarray(x.astype(jnp.float32)), 5, 2, 1e-4, 0.75)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8)


def test_an_empty_window_is_refused():
    with pytest.raises(UserError, match="size is 0"):
        local_response_norm(jnp.ones((1, 1, 1, 2)), size=0)


def apply_and_differentiate(norm, variables, x):
    """The result, the new statistics, and the gradient and its gradient by x and parameters."""

    def f(params, x):
        y, updates = norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sin(y.astype(jnp.float32)).sum(), (y, updates)

    def slope(params, x):
        grads, (y, updates) = jax.grad(f, (0, 1), has_aux=True)(params, x)
        return sum(jnp.sin(g).sum() for g in jax.tree.leaves(grads)), (grads, y, updates)

    return jax.grad(slope, (0, 1), has_aux=True)(variables.get("params", {}), x)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (3, 4, 2, 5), (2, 3, 2, 2, 5)], ids=len)
@pytest.mark.parametrize(
    "arguments",
    [
        {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-3},
        {"use_running_average": True},
        {"use_running_average": False, "use_scale": False, "use_bias": False},
    ],
    ids=["batch", "running averages", "no parameters"],
)
def test_batch_norm_is_flax(arguments, shape):
    x = jnp.asarray(3 * normal(*shape) + 1)
    theirs, ours = flax.linen.BatchNorm(**arguments), BatchNorm(**arguments)
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, variables
    )
    variables = jax.tree.map(lambda v: v + jnp.asarray(np.abs(normal(*v.shape))), variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        *(
            jax.jit(lambda v, x, norm=norm: apply_and_differentiate(norm, v, x))(variables, x)
            for norm in (ours, theirs)
        ),
    )


def test_batch_norm_of_bfloat16_is_flax():
    x = jnp.asarray(3 * normal(4, 3, 2, 5) + 1).astype(jnp.bfloat16)
    outputs = []
    for norm in (BatchNorm(False, dtype=jnp.bfloat16), flax.linen.BatchNorm(False, dtype=x.dtype)):
        variables = norm.init(jax.random.key(0), x)
        outputs.append(norm.apply(variables, x, mutable=["batch_stats"]))
    (y, updates), (expected, expected_updates) = outputs
    assert y.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected_updates
    )


def test_batch_norm_along_an_axis_sees_the_whole_batch():
    x = jnp.asarray(normal(8, 3, 2, 5))
    whole, parts = BatchNorm(False), BatchNorm(False, axis_name="devices")
    variables = whole.init(jax.random.key(0), x)
    expected, expected_updates = whole.apply(variables, x, mutable=["batch_stats"])
    y, updates = jax.vmap(
        lambda x: parts.apply(variables, x, mutable=["batch_stats"]),
        axis_name="devices",
        out_axes=(0, None),
    )(x.reshape(4, 2, 3, 2, 5))
    np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        updates,
        expected_updates,
    )


def test_batch_norm_fuses_no_sum_over_all_positions_with_what_it_sums_on_cpu():
    """Its barriers are for XLA:CPU alone (see channels.py)."""
    norm, x = BatchNorm(False), jnp.asarray(normal(2, 3, 4, 5))
    variables = norm.init(jax.random.key(0), x)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sin(norm.apply(variables, x, mutable=["batch_stats"])[0]).sum())
    )

    def barriers(platform):
        text = jax.export.export(gradient, platforms=[platform])(x).mlir_module()
        return text.count("stablehlo.optimization_barrier")

    assert barriers("cpu") >= 6
    assert barriers("cuda") == barriers("tpu") == 0


def test_batch_norm_statistics_are_pytorchs_up_to_the_bias_of_the_variance():
    x, momentum, epsilon = 3 * normal(4, 3, 2, 5) + 1, 0.1, 1e-5  # momentum in PyTorch's sense
    old_mean, old_var = normal(5), np.abs(normal(5)) + 0.5
    norm = BatchNorm(use_running_average=False, momentum=1 - momentum, epsilon=epsilon)
    variables = {
        "params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.asarray(old_mean), "var": jnp.asarray(old_var)},
    }
    y, updates = norm.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
    mean, biased, count = x.mean((0, 1, 2)), x.var((0, 1, 2)), 4 * 3 * 2
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + epsilon), rtol=1e-4, atol=1e-5)
    new = updates["batch_stats"]
    np.testing.assert_allclose(new["mean"], (1 - momentum) * old_mean + momentum * mean, rtol=1e-5)
    unbiased = x.var((0, 1, 2), ddof=1)
    pytorchs_var = (1 - momentum) * old_var + momentum * unbiased
    np.testing.assert_allclose(
        new["var"], pytorchs_var - momentum * biased / (count - 1), rtol=1e-5
    )


def train(norm, variables, x, **arguments):
    return norm.apply(variables, x, mutable=["batch_stats"], **arguments)


def start(channels, mean=0.0, variance=1.0):
    """Variables of a BatchNorm."""
    ones = jnp.ones(channels)
    params = {"scale": ones, "bias": 0 * ones}
    return {"params": params, "batch_stats": {"mean": mean * ones, "var": variance * ones}}


@pytest.mark.parametrize("parts", [1, 4])
def test_variance_far_from_zero_is_that_of_float64(parts):
    """E[x^2] - E[x]^2 is off here, and so are differences from a running mean of 0.

    With `use_fast_variance=False` the first batch is right, without it those after the running mean
    has followed: at momentum 0.9 after fifty batches.
    """
    x = np.float32(100 + 0.1 * normal(8, 16, 16, 4))
    exact = x.astype(np.float64)
    std = exact.std((0, 1, 2))
    expected = (exact - exact.mean((0, 1, 2))) / std

    def run(mean, fast):
        norm = BatchNorm(False, momentum=0, epsilon=0, axis_name="devices", use_fast_variance=fast)
        apply = jax.vmap(
            lambda x: train(norm, start(4, mean), x), axis_name="devices", out_axes=(0, None)
        )
        y, updates = jax.jit(apply)(x.reshape(parts, -1, 16, 16, 4))
        return y.reshape(x.shape), updates["batch_stats"]["var"]

    for mean, fast in ((0.0, False), (100 * (1 - 0.9**50), True)):
        y, variance = run(mean, fast)
        np.testing.assert_allclose(variance, std**2, rtol=1e-4)
        np.testing.assert_allclose(y, expected, atol=3e-3)
    assert abs(run(0.0, True)[0] - expected).max() > 0.03


def test_averages_that_overflowed_do_not_spread_to_what_is_trained():
    x = normal(8, 3)
    expected = train(BatchNorm(False), start(3), x)[0]
    y = train(BatchNorm(False), start(3, np.inf), x)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_batch_norm_is_flaxs_by_keyword():
    x, mask = jnp.asarray(3 * normal(4, 3, 5, 2) + 1), normal(4, 3, 1, 2) > 0
    cases = [
        ({"use_fast_variance": True}, {"use_running_average": False, "mask": mask}),
        ({"axis": 2, "use_running_average": False}, {"mask": mask}),
        ({"axis": -3, "use_bias": False}, {"use_running_average": True}),
        ({"dtype": None, "param_dtype": jnp.bfloat16}, {"use_running_average": False}),
    ]
    for attributes, arguments in cases:
        outputs = []
        for norm in (BatchNorm(**attributes), flax.linen.BatchNorm(**attributes)):

            @jax.jit
            def start_and_apply(x, norm=norm, arguments=arguments):
                variables = norm.init(jax.random.key(0), x, **arguments)
                return variables, train(norm, variables, x, **arguments)

            outputs.append(start_and_apply(x))
        assert jax.tree.map(jnp.shape, outputs[0]) == jax.tree.map(jnp.shape, outputs[1])
        assert jax.tree.map(jnp.result_type, outputs[0]) == jax.tree.map(
            jnp.result_type, outputs[1]
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *outputs)


@pytest.mark.parametrize("attribute", [None, True])
def test_use_running_average_is_given_once(attribute):
    with pytest.raises(UserError, match="use_running_average is (not given|given twice)"):
        BatchNorm(attribute).apply(start(2), jnp.ones((3, 2)), attribute)


def test_masked_values_of_all_devices_count_alike():
    x, counted = normal(8, 6, 3), np.arange(8) < 5  # one device has one example, one has none
    whole, updates = jax.jit(lambda x: train(BatchNorm(False), start(3), x))(x[:5])
    norm = BatchNorm(False, axis_name="d")
    y, masked = jax.jit(
        jax.vmap(
            lambda x, mask: train(norm, start(3), x, mask=mask), axis_name="d", out_axes=(0, None)
        )
    )(x.reshape(2, 4, 6, 3), counted.reshape(2, 4, 1, 1))
    np.testing.assert_allclose(y.reshape(x.shape)[:5], whole, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, updates)


def test_groups_of_devices_normalise_apart():
    x = normal(4, 6, 3)
    norm = BatchNorm(False, axis_name="d", axis_index_groups=[[0, 1], [2, 3]])
    y = jax.pmap(lambda x: train(norm, start(3), x)[0], "d", devices=jax.devices()[:4])(x)
    for half, expected in ((y[:2], x[:2]), (y[2:], x[2:])):
        expected = train(BatchNorm(False), start(3), expected)[0]
        np.testing.assert_allclose(half, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 5, 2), (3, 0, 5, 2)])
def test_an_empty_batch_changes_no_averages(shape):
    variables = start(2, mean=3.0, variance=0.7)
    y, updates = train(BatchNorm(False), variables, jnp.ones(shape))
    assert y.shape == shape
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_where_the_mask_leaves_nothing_the_averages_stay():
    variables = start(2, mean=3.0, variance=0.7)
    x, mask = jnp.asarray(normal(4, 5, 2)), jnp.array([True, False])
    norm = BatchNorm(False)
    y, updates = jax.jit(lambda x: train(norm, variables, x, mask=mask))(x)
    stays = [jnp.float32(3), jnp.float32(0.7)]
    assert [updates["batch_stats"][name][1] for name in ("mean", "var")] == stays
    np.testing.assert_allclose(y[..., 1], (x[..., 1] - 3) / np.sqrt(0.70001), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: train(norm, variables, x, mask=mask)[0].sum()))(x)
    assert jnp.isfinite(gradient).all()


def test_batch_norm_of_complex_values_is_numpys():
    x = normal(4, 6, 2) + 1j * normal(4, 6, 4)[..., 2:]
    variables = BatchNorm(False, dtype=None).init(jax.random.key(0), x)
    y, updates = train(BatchNorm(False, momentum=0, dtype=None), variables, x)
    mean, variance = x.mean((0, 1)), x.var((0, 1))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, rtol=1e-5)
    with pytest.raises(UserError, match="complex values need dtype=None"):
        train(BatchNorm(False), variables, x)
    with pytest.raises(UserError, match="local_response_norm: complex"):
        local_response_norm(x)


def test_norms_under_strict_promotion_and_of_integers():
    norm = BatchNorm(False, dtype=jnp.bfloat16)
    x = jnp.asarray(normal(3, 4, 2))

    def both(x):
        return train(norm, start(2), x)[0].sum() + local_response_norm(x).sum().astype(norm.dtype)

    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            assert jax.jit(jax.grad(both))(x.astype(dtype)).dtype == dtype
        integers = jnp.arange(12).reshape(2, 6)
        for f in (local_response_norm, lambda x: train(BatchNorm(False), start(6), x)[0]):
            np.testing.assert_allclose(f(integers), f(integers.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_a_divided_batch_stays_divided(axis_type):
    x = jnp.asarray(normal(16, 5, 4))

    def value_and_gradient(x):
        def f(x):
            y = train(BatchNorm(False), start(4), x)[0]
            return y, local_response_norm(y)

        y, transpose = jax.vjp(f, x)
        return y, transpose(jax.tree.map(jnp.sin, y))

    expected = jax.jit(value_and_gradient)(x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, P("data")))
        compiled = jax.jit(value_and_gradient).lower(split).compile()
        actual = compiled(split)
    assert "all-gather" not in compiled.as_text()
    for ours, one in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-5)
        assert ours.sharding.is_equivalent_to(split.sharding, 3)


def normalise_product(images, kernel, product=True):
    """A 1x1 convolution and its BatchNorm, told of the product or not -> y, statistics."""
    x = jnp.einsum("nhwk,kc->nhwc", images, kernel)
    known = {"product": (images, kernel)} if product else {}
    return train(BatchNorm(False, momentum=0), start(8), x, **known)


def test_a_tpu_normalises_a_product_by_its_factors(monkeypatch):
    images, kernel = jnp.abs(normal(4, 3, 3, 2)) + 0.5, jnp.asarray(normal(2, 8))

    def theirs(images, kernel):
        x = jnp.einsum("nhwk,kc->nhwc", images, kernel)
        return train(flax.linen.BatchNorm(False, momentum=0), start(8), x)

    def derive(function):
        y, transpose, statistics = jax.vjp(function, images, kernel, has_aux=True)
        return y, statistics, transpose(jnp.asarray(normal(4, 3, 3, 8)))

    there = derive(theirs)
    # What a TPU would run, here.
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    here = derive(normalise_product)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), here, there)


def test_elsewhere_a_product_changes_nothing():
    operands = jnp.asarray(normal(4, 3, 3, 2)), jnp.asarray(normal(2, 8))

    def gradient(product):
        f = functools.partial(normalise_product, product=product)
        return jax.jit(jax.grad(lambda *operands: jnp.sin(f(*operands)[0]).sum(), (0, 1)))

    # The same bits with jaxlib 0.10.1, not with every other one.
    told, plain = gradient(True)(*operands), gradient(False)(*operands)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), told, plain)
    on_tpu = jax.export.export(gradient(True), platforms=["tpu"])(*operands).mlir_module()
    assert "dot_general" in on_tpu and "convolution" in on_tpu
