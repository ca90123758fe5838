"""`flaxcnn.init`: the bits of `jit(model.init)`, from a few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models.airbench import init_identity
from flaxcnn.models.lenet import lecun_1998

VARIANCE_SCALING = nn.initializers.variance_scaling
INITIALIZERS = {
    "constant": nn.initializers.constant(0.2),
    "ones": nn.initializers.ones_init(),
    "normal": nn.initializers.normal(0.01),
    "truncated_normal": nn.initializers.truncated_normal(0.09),
    "uniform": nn.initializers.uniform(0.3),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "he_normal": nn.initializers.he_normal(),
    "he_fan_out": VARIANCE_SCALING(2.0, "fan_out", "normal"),
    "torch_uniform": VARIANCE_SCALING(1 / 3, "fan_in", "uniform"),
    "orthogonal": nn.initializers.orthogonal(),
    "identity": init_identity,
    "lecun_1998": lecun_1998,
    "shuffled": lambda key, shape, dtype: jax.random.permutation(key, 63).reshape(shape) * 0.1,
    "two_draws": lambda key, shape, dtype: sum(map(jax.random.normal, jax.random.split(key))),
    "half": lambda key, shape, dtype: jax.random.normal(key, shape, jnp.bfloat16),
}


class Everything(nn.Module):
    """A parameter by each initialiser, layers of Flax, and one that depends on the images."""

    @nn.compact
    def __call__(self, images, *, train):
        for name, initializer in INITIALIZERS.items():
            self.param(name, initializer, (3, 3, 1, 7), jnp.float32)
        x = nn.Dense(5_000, name="over_one_row")(images)
        x = nn.BatchNorm(use_running_average=not train)(x)
        self.param("noise", lambda key: x.mean() + jax.random.uniform(key))
        self.variable("counts", "noise", lambda: jax.random.bits(self.make_rng("dropout"), (5,)))
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers(name="scanned")(x, None)


class Layer(nn.Module):
    """A dense layer, as `nn.scan` wants it."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(2)(x)[..., :1] + x, None


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type), path
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def initialize(model, key, shape):
    images = jnp.zeros((1, *shape))
    return jax.jit(lambda key: model.init(key, images, train=False))(key)


def test_bits_are_those_of_a_compiled_init():
    model = Everything()
    keys = {"params": jax.random.key(3), "dropout": jax.random.PRNGKey(4)}
    assert_equal(flaxcnn.init(model, keys, (2, 3, 4)), initialize(model, keys, (2, 3, 4)))


def test_programs_do_not_grow_in_number_with_the_network(monkeypatch):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    key, counts = jax.random.key(0), []
    for hidden in ((4, 5), (4, 5, 6), (7, 8, 9, 10)):
        before = len(compiled)
        flaxcnn.init(create_model("mnist_mlp_512", hidden=hidden), key, (8, 8, 1))
        counts.append(len(compiled) - before)
    assert counts[1] <= 4 and counts[2] <= 4  # the first compiles what derives keys


def test_a_traced_key_a_module_without_train_and_one_that_prints(capfd):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            jax.debug.print("seen {}", x.shape[0])
            return nn.Dense(3)(x)

    keys = jax.random.split(jax.random.key(0), 2)
    model = create_model("mnist_mlp_512", hidden=(4,))
    found = jax.vmap(lambda key: flaxcnn.init(model, key, (4, 4, 1)))(keys)
    wanted = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 4, 4, 1)), train=False))(keys)
    assert_equal(found, wanted)
    found = flaxcnn.init(Plain(), keys[0], (2, 2, 1))
    assert_equal(found, jax.jit(Plain().init)(keys[0], jnp.zeros((1, 2, 2, 1))))
    jax.effects_barrier()
    assert capfd.readouterr().out == "seen 1\n" * 2


def test_images_that_a_network_cannot_take_are_refused():
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(1, 12)

    with pytest.raises(UserError, match="^the network cannot take 2x3x1 images: .*reshape"):
        flaxcnn.init(Fixed(), jax.random.key(0), (2, 3, 1))


MEASURE = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import flaxcnn
from flaxcnn.models import variant
for name in sys.argv[1:]:
    model, key = flaxcnn.create_model(name), jax.random.key(0)
    images = jnp.zeros((1, *variant(name).input_shape))
    jax.block_until_ready(images)
    start = time.perf_counter()
    found = jax.block_until_ready(flaxcnn.init(model, key, images.shape[1:]))
    middle = time.perf_counter()
    wanted = jax.block_until_ready(jax.jit(lambda key: model.init(key, images, train=False))(key))
    end = time.perf_counter()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    print(name, middle - start, end - middle)
"""


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_networks_start_with_the_same_bits_in_less_time(run_command):
    names = ("resnet50", "densenet121", "inception_v3", "mobilenet_v2", "nasnet_a_mobile")
    done = run_command("-c", MEASURE, *names, JAX_ENABLE_COMPILATION_CACHE="0", timeout=900)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, ours, plain = line.split()
        assert float(ours) < 0.6 * float(plain), name
