"""The identity whose gradient is computed once: an identity everywhere, a boundary on CPU only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxcnn.layers.barriers import compute_gradient_once

X = jnp.linspace(-2, 2, 24).reshape(4, 6)


def f(x):
    return (jnp.sin(compute_gradient_once(x)) ** 2).sum()


def plain(x):
    return (jnp.sin(x) ** 2).sum()


@pytest.mark.parametrize(
    "derive",
    [
        lambda f: f,
        jax.grad,
        jax.hessian,
        lambda f: jax.grad(lambda x: jax.grad(f)(x)[0].sum()),
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,)),
        lambda f: jax.vmap(jax.grad(f)),
        lambda f: jax.grad(jax.checkpoint(f)),
        lambda f: lambda x: jax.linearize(f, x)[1](x),
    ],
)
def test_values_and_derivatives_are_the_identitys(derive):
    for wrap in (lambda f: f, jax.jit):
        expected = jax.tree.leaves(wrap(derive(plain))(X))
        for ours, theirs in zip(jax.tree.leaves(wrap(derive(f))(X)), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def chain(boundary):
    """Joins maps as a dense block does; its gradient is a sum that two slices of it use."""

    def loss(x):
        for _ in range(3):
            x = boundary(jnp.concatenate([x, jnp.tanh(x[:, :2])], axis=1))
        return (x * x).sum()

    return jax.jit(jax.grad(loss)).lower(X).compile()


def test_on_cpu_the_gradient_is_cut_into_parts():
    ours, plain = chain(compute_gradient_once), chain(lambda x: x)
    assert ours.as_text().count(" call(") == 3
    assert " call(" not in plain.as_text()
    np.testing.assert_allclose(ours(X), plain(X), rtol=1e-6)


def test_elsewhere_nothing_is_left_of_it():
    for platform in ("cuda", "tpu"):
        exported = export.export(jax.jit(jax.grad(f)), platforms=[platform])(X)
        reference = export.export(jax.jit(jax.grad(plain)), platforms=[platform])(X)
        text = [e.mlir_module().replace("jit_f", "jit_plain") for e in (exported, reference)]
        assert text[0].count("stablehlo.") == text[1].count("stablehlo.")
        assert "optimization_barrier" not in text[0]


def test_a_batch_on_many_devices_is_not_gathered():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    compiled = jax.jit(jax.grad(f), in_shardings=split, out_shardings=split).lower(X).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(jax.device_put(X, split)), jax.grad(plain)(X), rtol=1e-6)


def test_an_exported_gradient_is_read_and_called_again():
    exported = export.export(jax.jit(jax.grad(f)), platforms=["cpu", "cuda", "tpu"])(X)
    read = export.deserialize(exported.serialize())
    np.testing.assert_allclose(read.call(X), jax.grad(plain)(X), rtol=1e-6)
