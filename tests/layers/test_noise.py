import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxcnn.errors import UserError
from flaxcnn.layers import Dropout, DropPath, GaussianDropout, GaussianNoise

LAYERS = {"dropout": Dropout(0.3), "gaussian": GaussianDropout(0.3), "noise": GaussianNoise(0.7)}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def apply(layer, x, seed=0):
    return draw(layer, x, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def draw(layer, x, key):
    return layer.apply({}, x, train=True, rngs={"dropout": key})


def test_dropout_zeroes_its_rate_and_keeps_the_mean():
    y = np.asarray(apply(Dropout(0.3), jnp.ones((64, 1000))))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs((y == 0).mean() - 0.3) < 4 * (0.21 / y.size) ** 0.5


def test_drop_path_drops_whole_examples():
    y = np.asarray(apply(DropPath(0.25), jnp.ones((4000, 2, 3))))
    whole = y.reshape(4000, -1)
    assert (whole == whole[:, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert abs((whole[:, 0] == 0).mean() - 0.25) < 4 * (0.1875 / 4000) ** 0.5
    still = DropPath(0.25).apply({}, jnp.ones((4, 2)), train=False)
    np.testing.assert_array_equal(still, jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("layer", "mean", "std"),
    [(GaussianDropout(0.3), 2, 2 * (0.3 / 0.7) ** 0.5), (GaussianNoise(0.7), 2, 0.7)],
)
def test_gaussian_noise_has_its_mean_and_deviation(layer, mean, std):
    y = np.asarray(apply(layer, jnp.full((64, 1000), 2.0)))
    assert abs(y.mean() - mean) < 4 * std / y.size**0.5
    assert abs(y.std() - std) < 4 * std / (2 * y.size) ** 0.5
    assert 0.0025 < (abs(y - mean) > 3 * std).mean() < 0.0029 + 0.0005  # normal: 0.0027


@each_layer
def test_examples_and_keys_differ(layer):
    x = jnp.ones((4, 50))
    y = apply(layer, x)
    assert len({row.tobytes() for row in np.asarray(y)}) == 4
    assert not np.array_equal(y, apply(layer, x, seed=1))
    np.testing.assert_array_equal(y, apply(layer, x))


@each_layer
def test_noise_of_an_example_depends_on_its_position_only(layer):
    x = jnp.ones((16, 50))
    np.testing.assert_array_equal(apply(layer, x)[:5], apply(layer, x[:5]))


@each_layer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_devices_do_not_change_a_bit(layer, dtype):
    x = jnp.linspace(-1, 1, 16 * 33, dtype=dtype).reshape(16, 33)
    one = jax.jit(lambda x: apply(layer, x))(x)
    assert one.dtype == dtype and not np.array_equal(one, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    eight = jax.jit(lambda x: apply(layer, x), in_shardings=split, out_shardings=split)(x)
    np.testing.assert_array_equal(eight, one)

    mapped = jax.pmap(lambda x: apply(layer.copy(axis_name="data"), x), "data")
    np.testing.assert_array_equal(mapped(x.reshape(8, 2, 33)).reshape(16, 33), one)


@pytest.mark.parametrize("layer", [*LAYERS.values(), DropPath(0.5)], ids=[*LAYERS, "path"])
def test_a_batch_divided_over_explicit_axes_stays_so(layer):
    x = jnp.linspace(-1, 1, 16 * 33, dtype=jnp.float32).reshape(16, 33)
    one = apply(layer, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, P("data")))
        compiled = draw.lower(layer, split, jax.random.key(0)).compile()
        y = compiled(split, jax.random.key(0))
        slope = jax.eval_shape(jax.grad(lambda x: apply(layer, x).sum()), split)
    # Equal bits of noise; XLA may round the sum or product with it otherwise.
    np.testing.assert_allclose(y, one, rtol=1e-6, atol=1e-6)
    assert y.sharding.spec == slope.sharding.spec == P("data", None)
    assert "all-gather" not in compiled.as_text()


def test_dropout_is_flaxs_by_keyword():
    x, key = jnp.ones((4, 6, 50)), jax.random.key(0)
    noisy = apply(Dropout(0.3), x)

    def drop(layer, *arguments, **keys):
        return jax.jit(lambda x: layer.apply({}, x, *arguments, **keys))(x)

    for layer, called in (
        (Dropout(rate=0.3, deterministic=False), ()),
        (Dropout(rate=0.3), (False,)),
    ):
        np.testing.assert_array_equal(drop(layer, *called, rngs={"dropout": key}), noisy)
    assert Dropout(0.3, deterministic=True).apply({}, x) is x
    assert Dropout(0.3).apply({}, x, True) is x
    other = Dropout(0.3, rng_collection="noise", broadcast_dims=(0, -2))
    shared = np.asarray(drop(other, False, rngs={"noise": key}))
    assert (shared == shared[:1, :1]).all() and 0 < (shared[0, 0] == 0).sum() < 50
    assert (drop(other, False, rng=key) != shared).any()


@pytest.mark.parametrize("attribute", [None, False])
def test_dropout_is_told_once_whether_to_drop(attribute):
    layer, x = Dropout(0.3, deterministic=attribute), jnp.ones((4, 5))
    with pytest.raises(UserError, match="exactly one of train=, deterministic="):
        layer.apply({}, x, *(() if attribute is None else (True,)))
    with pytest.raises(UserError, match="exactly one of train=, deterministic="):
        layer.apply({}, x, deterministic=True, train=False)


@pytest.mark.parametrize("layer", [*LAYERS.values(), DropPath(0.5)], ids=[*LAYERS, "path"])
def test_noise_under_strict_promotion_of_integers_and_of_no_examples(layer):
    def value_and_slope(x):
        y, transpose = jax.vjp(lambda x: apply(layer, x), x)
        return y, transpose(y)[0]

    with jax.numpy_dtype_promotion("strict"):
        for shape, dtype in (((4, 3), jnp.bfloat16), ((0, 3), jnp.float32)):
            x = jax.ShapeDtypeStruct(shape, dtype)
            assert jax.eval_shape(value_and_slope, x) == (x, x)
        y = jax.eval_shape(lambda x: apply(layer, x), jax.ShapeDtypeStruct((4, 3), jnp.int8))
    assert y.dtype == jnp.float32


@each_layer
def test_evaluation_is_the_identity_and_needs_no_key(layer):
    x = jnp.ones((4, 50))
    assert layer.apply({}, x, train=False) is x


@pytest.mark.parametrize("layer", [Dropout(0.0), GaussianDropout(0.0), GaussianNoise(0.0)])
def test_no_noise_needs_no_key(layer):
    x = jnp.ones((4, 50))
    assert layer.apply({}, x, train=True) is x


@pytest.mark.parametrize("layer", [Dropout, GaussianDropout])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_0_to_1_are_refused(layer, rate):
    with pytest.raises(UserError, match=rf"{layer.__name__}.rate is {rate}"):
        layer(rate).apply({}, jnp.ones((4, 5)), train=False)


def test_a_negative_deviation_is_refused():
    with pytest.raises(UserError, match=r"GaussianNoise.std is -1"):
        GaussianNoise(-1).apply({}, jnp.ones((4, 5)), train=False)
