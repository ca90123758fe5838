"""Strides, dilation, groups, one to three dimensions: every form equals `lax`, in every order."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from lax_convolutions import FORMS, assert_close, derivatives, gradient, lax_conv, random

from flaxcnn.layers import (
    Conv,
    ConvTranspose,
    DepthwiseConv,
    SeparableConv,
    conv,
    conv_cpu,
    conv_transpose,
)


@pytest.mark.sample(9)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_value_and_derivatives_are_lax(form):
    x_shape, kernel_shape, arguments = form
    x, kernel = random(0, x_shape), random(1, kernel_shape)
    ours, theirs = (
        jax.jit(derivatives(functools.partial(f, **arguments)))(x, kernel) for f in (conv, lax_conv)
    )
    assert_close(ours, theirs)


@pytest.mark.sample(4)
@pytest.mark.parametrize("axes", [(0, None), (None, 1), (2, 0)], ids=str)
@pytest.mark.parametrize("name", ["3x3 / 2", "3 groups / 2", "depthwise", "1x1 / 2"])
def test_vmap_is_lax(name, axes):
    x_shape, kernel_shape, arguments = FORMS[name]
    stacks = [
        array if axis is None else jnp.stack([array, jnp.cos(array), 2 * array], axis)
        for array, axis in zip((random(0, x_shape), random(1, kernel_shape)), axes, strict=True)
    ]

    def mapped(f):
        f = functools.partial(f, **arguments)
        gradient = jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))
        return jax.jit(jax.vmap(lambda x, k: (f(x, k), gradient(x, k)), axes))

    assert_close(mapped(conv)(*stacks), mapped(lax_conv)(*stacks))


@pytest.mark.sample(3)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["3x3 / 2", "3 groups / 2", "depthwise / 2", "dilated / 2"])
def test_accelerators_get_what_lax_writes(name, platform):
    x_shape, kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, x_shape), random(1, kernel_shape)

    def convolutions(f):
        f = functools.partial(f, **arguments)
        gradient = jax.jit(jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1)))
        text = jax.export.export(gradient, platforms=[platform])(x, kernel).mlir_module()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return sorted(line.split("dim_numbers = ")[1].split(" loc(")[0] for line in lines)

    assert convolutions(conv) == convolutions(lax_conv)


def test_no_convolution_of_a_gradient_on_cpu_leaves_the_fast_form():
    """Canonical layouts, one group; what is not a convolution is a matrix product or a sum."""
    for name, (x_shape, kernel_shape, arguments) in FORMS.items():
        if len(x_shape) != 4:
            continue
        f = functools.partial(conv, **arguments)
        gradient = jax.jit(jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), (0, 1)))
        text = gradient.lower(random(0, x_shape), random(1, kernel_shape)).as_text()
        for line in text.splitlines():
            if "stablehlo.convolution" in line:
                assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line, name
                assert "batch_group_count = 1" in line and "feature_group_count = 1" in line, name


@pytest.mark.parametrize("name", ["3x3 / 2", "3 groups / 2", "depthwise / 2"])
def test_shard_map_and_pmap_are_one_device(name):
    (_, *image), kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, (16, *image)), random(1, kernel_shape)
    expected = jax.jit(gradient(lax_conv, arguments))(x, kernel)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec("data"), PartitionSpec())
    mapped = jax.shard_map(gradient(conv, arguments), mesh=mesh, in_specs=specs, out_specs=specs)
    assert_close(jax.jit(mapped)(x, kernel), expected)
    dx, dkernel = jax.pmap(gradient(conv, arguments), in_axes=(0, None))(
        x.reshape(8, 2, *image), kernel
    )
    assert_close((dx.reshape(x.shape), dkernel.sum(0)), expected)


def test_many_blocks_of_groups_are_a_loop(monkeypatch):
    monkeypatch.setattr(conv_cpu, "_BLOCK_CHANNELS", 2)
    monkeypatch.setattr(conv_cpu, "_UNROLLED_BLOCKS", 1)
    (_, *image), kernel_shape, arguments = FORMS["3 groups / 2"]
    x, kernel = random(0, (4, *image)), random(1, kernel_shape)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec("data"), PartitionSpec())
    mapped = jax.shard_map(gradient(conv, arguments), mesh=mesh, in_specs=specs, out_specs=specs)
    lowered = jax.jit(mapped).lower(x, kernel)
    assert lowered.as_text().count("stablehlo.while") == 3  # forward, and both gradients
    assert_close(lowered.compile()(x, kernel), jax.jit(gradient(lax_conv, arguments))(x, kernel))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["3x3 / 2", "3 groups / 2", "depthwise / 2"])
def test_linearize_checkpoint_and_hessian_are_lax(name):
    x_shape, kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, x_shape), random(1, kernel_shape)

    def transformed(f):
        f = functools.partial(f, **arguments)
        kept = jax.grad(lambda x, k: jnp.sin(jax.checkpoint(f)(x, k)).sum(), (0, 1))

        def curvature(kernel):  # along one direction: the whole Hessian is large
            slope = jax.grad(lambda k: jnp.sin(f(x, k)).sum())
            return jax.jvp(slope, (kernel,), (jnp.cos(kernel),))[1]

        def all_of_them(x, k):
            tangent = jax.linearize(f, x, k)[1](jnp.cos(x), jnp.sin(k))
            return tangent, kept(x, k), curvature(k)

        return jax.jit(all_of_them)

    assert_close(transformed(conv)(x, kernel), transformed(lax_conv)(x, kernel))


@pytest.mark.parametrize("name", ["3x3 / 2", "3 groups / 2", "depthwise / 2"])
def test_an_export_can_be_written_and_read(name):
    x_shape, kernel_shape, arguments = FORMS[name]
    x, kernel = random(0, x_shape), random(1, kernel_shape)
    f = jax.jit(gradient(conv, arguments))
    written = jax.export.export(f, platforms=["cpu", "cuda", "tpu"])(x, kernel).serialize()
    assert_close(jax.export.deserialize(written).call(x, kernel), f(x, kernel))


def test_the_kernel_gradient_on_cpu_is_eigens_convolution():
    """YNNPACK's is a third as fast, and XLA's own, which it gets if operands change places, a 50th.

    A new XLA may choose in another way: then look at `_kernel_gradient_by_convolution` again.
    """
    # Large enough: small convolutions are never YNNPACK's.
    for size, padding in ((28, "SAME"), (28, "VALID"), (14, "SAME")):
        x, kernel = random(0, (8, size, size, 64)), random(1, (3, 3, 64, 64))
        f = functools.partial(conv, padding=padding)
        gradient_of_kernel = jax.jit(jax.grad(lambda k, x, f=f: jnp.sin(f(x, k)).sum()))
        compiled = gradient_of_kernel.lower(kernel, x).compile().as_text()
        (entry,) = (part for part in compiled.split("\n\n") if "ENTRY" in part)  # not in a fusion
        (line,) = (line for line in entry.splitlines() if "f32[64,3,3,64]" in line.split("(")[0])
        assert " convolution(" in line and "dim_labels=b01f_01io->b01f" in line, (size, padding)


@pytest.mark.sample(6)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [1, 2, (3, 2), (4, 4)], ids=str)
@pytest.mark.parametrize("kernel_size", [(3, 3), (4, 2), (1, 5)], ids=str)
def test_conv_transpose_is_lax(kernel_size, strides, padding):
    x, kernel = random(0, (2, 4, 5, 3)), random(1, (*kernel_size, 3, 2))

    def theirs(x, kernel):
        steps = (strides,) * 2 if isinstance(strides, int) else strides
        return lax.conv_transpose(x, kernel, steps, padding)

    def value_and_gradient(f):
        return jax.jit(lambda x, k: (f(x, k), gradient(f, {})(x, k)))

    ours = functools.partial(conv_transpose, strides=strides, padding=padding)
    assert_close(value_and_gradient(ours)(x, kernel), value_and_gradient(theirs)(x, kernel))


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (
            Conv(6, (3, 3), strides=2, groups=3, dilation=2),
            nn.Conv(6, (3, 3), strides=2, feature_group_count=3, kernel_dilation=2),
            (2, 9, 8, 3),
        ),
        (Conv(4, (3,)), nn.Conv(4, (3,)), (2, 7, 3)),
        (Conv(4, (3, 2, 1)), nn.Conv(4, (3, 2, 1)), (1, 4, 5, 3, 2)),
        (
            DepthwiseConv(3, multiplier=2),
            nn.Conv(6, (3, 3), feature_group_count=3),
            (2, 5, 6, 3),
        ),
        (
            ConvTranspose(4, (3, 3), strides=2),
            nn.ConvTranspose(4, (3, 3), strides=(2, 2)),
            (2, 5, 6, 3),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_interchangeable_with_flax(ours, theirs, shape):
    x = random(0, shape)
    variables = theirs.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v + 0.1, variables)  # biases too
    mine = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, mine) == jax.tree.map(jnp.shape, variables)
    assert_close(ours.apply(variables, x), theirs.apply(variables, x))


def test_separable_is_depthwise_then_pointwise():
    x = random(0, (2, 6, 5, 3))
    module = SeparableConv(4, 3, strides=2)
    params = module.init(jax.random.key(0), x)["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "depthwise": {"kernel": (3, 3, 1, 3)},
        "pointwise": {"kernel": (1, 1, 3, 4), "bias": (4,)},
    }
    y = lax_conv(x, params["depthwise"]["kernel"], strides=2, groups=3)
    y = jnp.einsum("nhwc,cf->nhwf", y, params["pointwise"]["kernel"][0, 0])
    assert_close(module.apply({"params": params}, x), y)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["3x3 / 2", "1x1 / 2", "dilated", "3 groups / 2", "depthwise"])
def test_bfloat16_stays_bfloat16(name):
    x_shape, kernel_shape, arguments = FORMS[name]
    x, kernel = (random(i, s).astype(jnp.bfloat16) for i, s in enumerate((x_shape, kernel_shape)))

    @jax.jit
    def value_and_transposes(x, kernel):
        y, transpose = jax.vjp(functools.partial(conv, **arguments), x, kernel)
        return y, *transpose(y)

    y, *transposed = value_and_transposes(x, kernel)
    assert {a.dtype for a in (y, *transposed)} == {jnp.dtype(jnp.bfloat16)}
    wide, wide_kernel = (a.astype(jnp.float32) for a in (x, kernel))
    expected, transpose = jax.vjp(functools.partial(lax_conv, **arguments), wide, wide_kernel)
    for ours, exact in zip(
        (y, *transposed), (expected, *transpose(y.astype(jnp.float32))), strict=True
    ):
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=0.05, atol=0.1)
