"""A batch that is divided among devices stays divided, as with `nn.Conv`.

Explicit axes are the default of `jax.make_mesh`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from lax_convolutions import FORMS, assert_close, derivatives, gradient, lax_conv, random

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm, Conv, conv, conv_transpose
from flaxcnn.layers.barriers import compute_gradient_once


def mesh(axis_type=AxisType.Explicit):
    return jax.make_mesh((8,), ("data",), axis_types=(axis_type,))


def put(x, *spec, mesh=mesh()):  # noqa: B008
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def is_divided(x):
    return x.sharding.spec == P("data", *(None,) * (x.ndim - 1))


def is_whole(x):
    return x.sharding.spec == P(*(None,) * x.ndim)


@pytest.mark.parametrize("name", ["3x3 / 2", "depthwise / 2", "one dimension", "three dimensions"])
def test_types_of_all_derivatives_keep_the_batch_divided(name):
    (_, *image), kernel_shape, arguments = FORMS[name]
    x, kernel = put(jnp.ones((16, *image)), "data"), put(jnp.ones(kernel_shape))
    f = functools.partial(conv, **arguments)
    y, *gradients = jax.eval_shape(derivatives(f), x, kernel)
    assert is_divided(y)
    for dx, dkernel in gradients:
        assert is_divided(dx) and is_whole(dkernel)


EXPLICIT = ["3x3 / 2", "11x11 / 4", "1x1 / 2", "dilated", "2 groups", "3 groups / 2"]
EXPLICIT += ["depthwise / 2", "depthwise, 2 filters each", "one dimension"]


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [("3 groups / 2", AxisType.Auto), *((name, AxisType.Explicit) for name in EXPLICIT)],
)
def test_a_device_computes_its_share_and_sees_no_others_images(name, axis_type):
    """XLA gathers the images of grouped convolutions (xla#47945); these are not grouped."""
    (_, *image), kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, (16, *image)), random(1, kernel_shape)
    on = functools.partial(put, mesh=mesh(axis_type))
    operands = on(x, "data"), on(kernel)
    ours = jax.jit(gradient(conv, arguments)).lower(*operands).compile()
    whole = jax.jit(gradient(lax_conv, arguments)).lower(x, kernel).compile()
    assert_close(ours(*operands), whole(x, kernel))
    assert "all-reduce" in ours.as_text() and "all-gather" not in ours.as_text()
    share, flops = (compiled.cost_analysis()["flops"] for compiled in (ours, whole))
    assert share < 0.7 * flops  # blocks of groups multiply more than lax


def test_layers_keep_the_batch_divided():
    """Also what is spread over the maps, biases and statistics, and the gradients of these."""
    x, layers = random(0, (16, 6, 5, 3)), (Conv(8, 3, strides=2), BatchNorm(False))
    variables, y = [], x
    for layer in layers:
        y, initial = layer.init_with_output(jax.random.key(0), y)
        variables.append(initial)

    def loss(x, variables):
        for layer, own in zip(layers, variables, strict=True):
            x, _ = layer.apply(own, compute_gradient_once(x), mutable=["batch_stats"])
        return jnp.sin(x).sum()

    f = jax.jit(jax.grad(loss, (0, 1)))
    on_mesh = put(x, "data"), jax.tree.map(put, variables)
    with jax.set_mesh(mesh()):
        split = f.lower(*on_mesh).compile()
        ours = split(*on_mesh)
    whole = f.lower(x, variables).compile()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        *(jax.device_get(gradients) for gradients in (ours, whole(x, variables))),
    )
    assert is_divided(ours[0]) and all(map(is_whole, jax.tree.leaves(ours[1])))
    assert "all-gather" not in split.as_text()
    assert split.cost_analysis()["flops"] < 1.1 * whole.cost_analysis()["flops"] / 8


def test_rows_may_be_divided():
    x, kernel = random(0, (2, 16, 6, 3)), random(1, (3, 2, 3, 4))
    y, transpose = jax.vjp(conv_transpose, put(x, None, "data"), put(kernel))
    expected, transpose_whole = jax.vjp(
        lambda x, k: lax.conv_transpose(x, k, (1, 1), "SAME"), x, kernel
    )
    dx, dkernel = transpose(y)
    assert y.sharding.spec == dx.sharding.spec == P(None, "data", None, None)
    assert_close((y, dx, dkernel), (expected, *transpose_whole(expected)))


def test_vmap_keeps_the_batch_divided():
    x, kernels = random(0, (16, 5, 4, 3)), random(1, (2, 3, 2, 3, 4))

    def mapped(f):
        def run(x, kernels):
            y, transpose = jax.vjp(lambda k: jax.vmap(f, (None, 0))(x, k), kernels)
            one = jax.grad(lambda kernel, x: f(x[None], kernel).sum())
            per_example = jax.vmap(one, (None, 0))(kernels[0], x)
            return jax.vmap(f, (0, None))(jnp.stack([x, x]), kernels[0]), transpose(y), per_example

        return jax.jit(run)

    y, (dkernels,), per_example = ours = mapped(conv)(put(x, "data"), put(kernels))
    assert_close(ours, mapped(lax_conv)(x, kernels))
    assert y.sharding.spec == P(None, "data", None, None, None)
    assert is_whole(dkernels) and is_divided(per_example)


def test_accelerators_get_the_batch_divided():
    x, kernel = put(jnp.ones((16, 7, 6, 3)), "data"), put(jnp.ones((3, 3, 3, 4)))
    traced = jax.jit(gradient(conv, {"strides": 2})).trace(x, kernel)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    results = [line.split(" = ")[0] for line in text.splitlines() if ".convolution" in line]
    shardings = [
        line.split("<@mesh, ")[1].split(">")[0]
        for line in text.splitlines()
        if any(f"sharding_constraint {result.strip()} " in line for result in results)
    ]
    assert sorted(shardings) == sorted(['[{"data"}, {}, {}, {}]'] * 2 + ["[{}, {}, {}, {}]"])


def test_gradients_of_kernels_that_differ_are_not_summed_over_devices():
    x, kernels = jnp.ones((8, 5, 6, 2)), jnp.ones((24, 3, 2, 4))

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel)).sum(), (0, 1))(x, kernel)

    # Each device has images and a kernel of its own.
    divided = jax.shard_map(
        gradients, mesh=mesh(AxisType.Auto), in_specs=P("data"), out_specs=P("data")
    )
    for platform in ("cpu", "tpu"):
        traced = jax.jit(divided).trace(x, kernels)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "all_reduce" not in text


def test_divided_channels_and_kernels_are_a_users_error():
    x, kernel = jnp.ones((2, 16, 6, 8)), jnp.ones((3, 3, 8, 8))
    channels = None, None, None, "data"
    for operands in ((put(x, *channels), put(kernel)), (put(x), put(kernel, *channels))):
        with pytest.raises(UserError, match="reshard"):
            jax.eval_shape(conv, *operands)
    with pytest.raises(UserError, match="4 rows"):
        jax.eval_shape(functools.partial(conv, strides=4), put(x, None, "data"), put(kernel))
