import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import signal

from flaxcnn.layers import Conv, conv

NHWC = ("NHWC", "HWIO", "NHWC")
CANONICAL = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
PADDINGS = ["SAME", "VALID", ((2, 1), (0, 3)), ((3, 3), (-1, 2))]


def lax_conv(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC)


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def wavy(conv):
    """Makes a scalar function of images and kernel with derivatives of every order."""
    return lambda x, kernel: jnp.sin(conv(x, kernel)).sum()


def gradients(conv):
    return jax.grad(wavy(conv), (0, 1))


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def assert_close(actual, expected, tolerance=2e-5):
    def check(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 2), (3, 3), (5, 3), (4, 1)])
def test_valid_convolution_is_a_sum_of_correlations(kernel_size):
    x, kernel = random(0, 2, 7, 6, 3), random(1, *kernel_size, 3, 4)
    expected = [
        [
            sum(signal.correlate2d(image[..., c], kernel[..., c, f], "valid") for c in range(3))
            for f in range(4)
        ]
        for image in x
    ]
    assert_close(
        conv(x, kernel, padding="VALID"),
        jnp.asarray(np.transpose(expected, (0, 2, 3, 1)), jnp.float32),
    )


def test_a_number_is_a_border_on_every_side():
    x, kernel = random(0, 1, 5, 6, 2), random(1, 3, 3, 2, 4)
    border = ((1, 1), (1, 1))
    assert np.array_equal(conv(x, kernel, padding=1), conv(x, kernel, padding=border))


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_lax(padding):
    x, kernel = random(0, 2, 7, 6, 3), random(1, 3, 2, 3, 4)

    def value_and_gradients(f):
        f = functools.partial(f, padding=padding)
        return jax.jit(lambda x, k: (f(x, k), gradients(f)(x, k)))(x, kernel)

    assert_close(value_and_gradients(conv), value_and_gradients(lax_conv))


def transpose(conv, x, kernel):
    """Applies both transposes to one cotangent, mapped or not whatever x and kernel are."""
    y, apply = jax.vjp(conv, x, kernel)
    return apply(random(2, *y.shape))


TRANSFORMS = {
    "convolution": lambda f: f,
    "gradient": gradients,
    "transposes": lambda f: lambda x, k: transpose(f, x, k),
    "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (jnp.cos(x), jnp.sin(k))),
    "jvp of gradient": lambda f: lambda x, k: jax.jvp(
        gradients(f), (x, k), (jnp.cos(x), jnp.sin(k))
    ),
    "gradient of gradient": lambda f: jax.grad(
        lambda x, k: sum(jnp.sin(g).sum() for g in gradients(f)(x, k)), (0, 1)
    ),
    "hessian": lambda f: lambda x, k: jax.hessian(wavy(f), 1)(x[:, :3, :3], k[:2, :2]),
    "jacobian, forward": lambda f: lambda x, k: jax.jacfwd(f, (0, 1))(x[:1, :3, :3], k[:2]),
    "jacobian, reverse": lambda f: lambda x, k: jax.jacrev(f, (0, 1))(x[:1, :3, :3], k[:2]),
    "linearize": lambda f: lambda x, k: jax.linearize(f, x, k)[1](jnp.cos(x), jnp.sin(k)),
    "checkpoint": lambda f: jax.grad(wavy(jax.checkpoint(f)), (0, 1)),
    "per-example gradients": lambda f: jax.vmap(
        jax.grad(lambda x, k: wavy(f)(x[None], k), (0, 1)), (0, None)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_are_lax(transform):
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    assert_close(jax.jit(transform(conv))(x, kernel), jax.jit(transform(lax_conv))(x, kernel))


@pytest.mark.sample(4)
@pytest.mark.parametrize("axes", [(1, None), (None, 2), (0, 3), (-1, 0)], ids=str)
@pytest.mark.parametrize("of", ["convolution", "transposes", "jvp of gradient"])
def test_vmap_is_lax(of, axes):
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    stacks = [
        array if axis is None else jnp.stack([array, jnp.cos(array), 2 * array], axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]
    ours, theirs = (jax.jit(jax.vmap(TRANSFORMS[of](f), axes))(*stacks) for f in (conv, lax_conv))
    assert_close(ours, theirs)


def test_gradient_through_vmap_over_both_is_lax():
    x, kernel = random(0, 3, 2, 5, 4, 3), random(1, 3, 3, 2, 3, 2)
    ours, theirs = (
        jax.jit(jax.grad(lambda x, k, f=f: jax.vmap(wavy(f))(x, k).sum(), (0, 1)))(x, kernel)
        for f in (conv, lax_conv)
    )
    assert_close(ours, theirs)


def test_bfloat16_is_lax():
    x, kernel = (a.astype(jnp.bfloat16) for a in (random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)))

    def total(f):
        return lambda x, k: f(x, k).astype(jnp.float32).sum()

    assert conv(x, kernel).dtype == jnp.bfloat16
    np.testing.assert_array_equal(conv(x, kernel), lax_conv(x, kernel))
    for ours, theirs in zip(
        jax.grad(total(conv), (0, 1))(x, kernel),
        jax.grad(total(lax_conv), (0, 1))(x, kernel),
        strict=True,
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours, theirs, rtol=2**-6)


def convolutions(text):
    """Lists the operands' dimension numbers of each convolution in a StableHLO text."""
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return [line.split("dim_numbers = ")[1].split(", window")[0] for line in lines]


def test_cpu_gradients_are_canonical_convolutions_or_matrix_products_in_every_order():
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    for name in ("gradient", "jvp of gradient", "gradient of gradient"):
        ours = convolutions(jax.jit(TRANSFORMS[name](conv)).lower(x, kernel).as_text())
        assert ours and set(ours) == {CANONICAL}, name


@pytest.mark.sample(6)
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3)), ((-1, 1), (1, -1))])
def test_the_kernel_gradient_is_lax(channels, padding):
    """Few channels and many take different ways; negative padding crops."""
    x, kernel = random(0, 3, 7, 6, channels), random(1, 3, 2, channels, 5)
    ours, theirs = (
        jax.jit(gradients(functools.partial(f, padding=padding)))(x, kernel)
        for f in (conv, lax_conv)
    )
    assert_close(ours, theirs)


@pytest.mark.sample(3)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", ["convolution", "gradient", "jvp"])
def test_accelerators_get_what_lax_writes(platform, name):
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    ours, theirs = (
        jax.export.export(jax.jit(TRANSFORMS[name](f)), platforms=[platform])(x, kernel)
        for f in (conv, lax_conv)
    )
    assert sorted(convolutions(ours.mlir_module())) == sorted(convolutions(theirs.mlir_module()))


def test_one_export_serves_every_platform():
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    f = jax.jit(gradients(conv))
    exported = jax.export.export(f, platforms=["cpu", "cuda", "tpu"])(x, kernel)
    assert_close(exported.call(x, kernel), jax.jit(gradients(lax_conv))(x, kernel))


def test_precision_of_the_context_is_kept():
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 2, 3, 2)
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(gradients(conv)).trace(x, kernel)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3 and all("HIGHEST" in line for line in lines)


def test_sharded_batch_is_one_device_without_gathering_it():
    x, kernel = random(0, 16, 8, 8, 3), random(1, 3, 3, 3, 4)
    split, whole = (NamedSharding(mesh(), spec) for spec in (P("data"), P()))
    f = jax.jit(gradients(conv), in_shardings=(split, whole), out_shardings=(split, whole))
    assert_close(f(x, kernel), jax.jit(gradients(lax_conv))(x, kernel))
    compiled = f.lower(x, kernel).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_is_one_device(check_vma):
    x, kernel = random(0, 16, 8, 8, 3), random(1, 3, 3, 3, 4)

    def step(x, kernel):
        dx, dkernel = gradients(conv)(x, kernel)
        return dx, dkernel if check_vma else lax.psum(dkernel, "data")  # vma knows it is a sum

    f = jax.shard_map(
        step,
        mesh=mesh(),
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )
    assert_close(jax.jit(f)(x, kernel), jax.jit(gradients(lax_conv))(x, kernel))


def test_pmap_is_one_device():
    x, kernel = random(0, 16, 8, 8, 3), random(1, 3, 3, 3, 4)
    f = jax.pmap(
        lambda x, k: lax.psum(jax.grad(wavy(conv), 1)(x, k), "data"), "data", in_axes=(0, None)
    )
    ours = f(x.reshape(8, 2, 8, 8, 3), kernel)[0]
    assert_close(ours, jax.grad(wavy(lax_conv), 1)(x, kernel))


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"kernel_size": 3}, {}),
        ({"kernel_size": (3, 3), "padding": "VALID"}, {"padding": "VALID"}),
        ({"kernel_size": 3, "strides": 2}, {"strides": (2, 2)}),
        ({"kernel_size": 3, "strides": (2, 1), "padding": "VALID"},
         {"strides": (2, 1), "padding": "VALID"}),
        ({"kernel_size": 3, "dilation": 2}, {"kernel_dilation": (2, 2)}),
        ({"kernel_size": 3, "groups": 2}, {"feature_group_count": 2}),
        ({"kernel_size": 3, "groups": 4, "strides": 2, "padding": ((1, 1), (1, 1))},
         {"feature_group_count": 4, "strides": (2, 2), "padding": ((1, 1), (1, 1))}),
        ({"kernel_size": 3, "use_bias": False}, {"use_bias": False}),
        ({"kernel_size": 3, "dtype": jnp.bfloat16}, {"dtype": jnp.bfloat16}),
    ],
    ids=str,
)  # fmt: skip
def test_module_is_flax_linen_conv(ours, theirs):
    x, key = random(0, 2, 9, 8, 4), jax.random.key(1)
    layer = Conv(8, bias_init=nn.initializers.normal(), **ours)
    reference = nn.Conv(8, (3, 3), bias_init=nn.initializers.normal(), **theirs)
    variables = layer.init(key, x)
    assert_close(variables, reference.init(key, x), 0)
    assert_close(layer.apply(variables, x), reference.apply(variables, x))
