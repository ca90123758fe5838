"""The training step in JAX: flaxcnn's layers or plain Flax's, one step per call or a scan."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from networks import Network

import flaxcnn
from flaxcnn import layers
from flaxcnn.models import variant

SCAN_STEPS = 8


@dataclasses.dataclass(frozen=True)
class JaxLayers:
    """The layers a definition in `networks` asks for, from flaxcnn or from Flax itself."""

    library: str
    dtype: Any = jnp.float32  # of the computation

    def conv(self, x, features, kernel, stride=1, *, padding=None, groups=1, bias=False):
        """Convolution; `padding` zeros on every side."""
        pads = [((kernel - 1) // 2 if padding is None else padding,) * 2] * 2
        if self.library == "flaxcnn":
            conv = layers.Conv(
                *(features, kernel, stride, pads), groups=groups, use_bias=bias, dtype=self.dtype
            )
        else:
            conv = nn.Conv(
                *(features, (kernel, kernel), stride, pads),
                feature_group_count=groups,
                use_bias=bias,
                dtype=self.dtype,
            )
        return conv(x)

    def depthwise(self, x, kernel, stride=1):
        """Convolution of each channel with a kernel of its own."""
        channels = x.shape[-1]
        return self.conv(x, channels, kernel, stride, groups=channels)

    def batch_norm(self, x):
        """BatchNorm in training mode."""
        norm = layers.BatchNorm if self.library == "flaxcnn" else nn.BatchNorm
        return norm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)

    def max_pool(self, x, window, stride, padding=0):
        """Maximum over square windows."""
        pool = layers.max_pool if self.library == "flaxcnn" else nn.max_pool
        return pool(x, (window, window), (stride, stride), [(padding, padding)] * 2)

    def avg_pool(self, x, window, stride):
        """Mean over square windows."""
        pool = layers.avg_pool if self.library == "flaxcnn" else nn.avg_pool
        return pool(x, (window, window), (stride, stride))

    def global_avg_pool(self, x):
        """Mean over each map."""
        return layers.global_avg_pool(x) if self.library == "flaxcnn" else x.mean((1, 2))

    def relu(self, x, keep=False):
        """Rectifier; XLA decides what is overwritten."""
        return nn.relu(x)

    def relu6(self, x):
        """Rectifier clipped at 6."""
        return nn.relu6(x)

    def concat(self, maps):
        """Maps side by side along the channels."""
        return jnp.concatenate(maps, axis=-1)

    def flatten(self, x):
        """One row per image."""
        return x.reshape(x.shape[0], -1)

    def dense(self, x, features):
        """Dense layer with bias."""
        return nn.Dense(features, dtype=self.dtype)(x)


class JaxNetwork(nn.Module):
    """A definition as a Linen module."""

    define: Callable[[JaxLayers, jax.Array], jax.Array]
    library: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to logits."""
        del train  # always
        return self.define(JaxLayers(self.library, self.dtype), images)


def make_model(network: Network, library: str, dtype: Any = jnp.float32) -> nn.Module:
    """Makes the network of `library`, "flaxcnn" or "flax"; it computes in `dtype`."""
    if library == "flaxcnn" and network.flaxcnn_name:
        return flaxcnn.create_model(network.flaxcnn_name, dtype=dtype)
    return JaxNetwork(network.define, library, dtype)


def infer_variables(network: Network, library: str) -> dict[str, Any]:
    """Finds the shapes of parameters and statistics, without compiling anything."""
    model = make_model(network, library)
    images = jax.ShapeDtypeStruct((1, *network.input_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, x: model.init(k, x, train=True), key, images)


def count_macs(network: Network) -> tuple[int, int]:
    """Counts the multiply-adds of one image in the forward pass, and in a training step.

    A training step has each product three times, the first layer's twice: nobody asks for the
    gradient of the images.
    """
    model = make_model(network, "flax")
    images = jax.ShapeDtypeStruct((1, *network.input_shape), jnp.float32)
    forward = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=True))
    macs = list(_iterate_macs(forward(infer_variables(network, "flax"), images).jaxpr))
    return sum(macs), 3 * sum(macs) - macs[0]


def _iterate_macs(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel, outputs = eqn.invars[1].aval, eqn.outvars[0].aval
            features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            yield outputs.size * kernel.size // features
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            x, outputs = eqn.invars[0].aval, eqn.outvars[0].aval
            yield outputs.size * int(np.prod([x.shape[axis] for axis in contracted]))
        for inner in jax.core.jaxprs_in_params(eqn.params):
            yield from _iterate_macs(inner)


def draw_variables(shapes: dict[str, Any]) -> dict[str, Any]:
    """Draws He-normal kernels (He et al. 2015) in NumPy: compiling `init` would take longer."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        role = path[-1].key
        if role == "kernel":
            scale = np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * scale)
        return jnp.full(leaf.shape, role in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_train_step(model: nn.Module, tx: optax.GradientTransformation) -> Callable:
    """Makes `train_step((params, statistics, opt_state), (images, labels)) -> (state, loss)`."""

    def train_step(state, examples):
        params, statistics, opt_state = state
        images, labels = examples

        def loss_fn(params):
            variables = {"params": params, **statistics}
            logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            logits = logits.astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, dict(updates)

        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), statistics, opt_state), loss

    return train_step


def prepare_training(
    network: Network, batch: int, library: str, scan: bool, dtype: Any = jnp.float32
):
    """Compiles the training step; returns `run(steps) -> loss` and what is known of the step.

    With `scan` a call makes `SCAN_STEPS` steps, each on a batch of its own. `dtype` is that of the
    computation.
    """
    tx = optax.sgd(1e-3, momentum=0.9)
    train_step = make_train_step(make_model(network, library, dtype), tx)

    def train_steps(state, examples):
        state, losses = lax.scan(train_step, state, examples)
        return state, losses[-1]

    rng = np.random.default_rng(1)
    leading = (SCAN_STEPS, batch) if scan else (batch,)
    images = jnp.asarray(rng.standard_normal((*leading, *network.input_shape), np.float32))
    labels = jnp.asarray(rng.integers(network.num_classes, size=leading, dtype=np.int32))
    variables = draw_variables(infer_variables(network, library))
    params = variables.pop("params")
    state = (params, variables, tx.init(params))

    step = jax.jit(train_steps if scan else train_step, donate_argnums=0)
    start = time.perf_counter()
    step = step.lower(state, (images, labels)).compile()
    compile_seconds = time.perf_counter() - start

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps // (SCAN_STEPS if scan else 1)):
            state, loss = step(state, (images, labels))
        jax.block_until_ready(state)
        return float(loss)

    macs, train_macs = count_macs(network)
    known = {
        "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "macs": macs,
        "train_macs": train_macs,
        "compile_seconds": compile_seconds,
        "unit": SCAN_STEPS if scan else 1,
    }
    return run, known


def prepare_inference(name: str, batch: int, fold: bool):
    """Compiles the forward pass of a network of `flaxcnn.models`; as `prepare_training` does.

    `instructions` are those of the compiled program.
    """
    shape = variant(name).input_shape
    model = flaxcnn.create_model(name)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, images)
    variables = draw_variables(shapes)
    known = {"params": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])), "unit": 1}
    if fold:
        model, variables = flaxcnn.fold_batch_norm(model, variables)
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.standard_normal((batch, *shape), np.float32))
    forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    start = time.perf_counter()
    forward = forward.lower(variables, images).compile()
    known["compile_seconds"] = time.perf_counter() - start
    known["instructions"] = forward.as_text().count(" = ")

    def run(steps: int) -> float:
        for _ in range(steps):
            logits = forward(variables, images)
            logits.block_until_ready()
        return float(logits[0, 0])

    return run, known


def prepare_matmul(size: int):
    """A float32 matrix product of `size` cubed; returns as `prepare_training` does."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    product = jax.jit(jnp.matmul).lower(x, x).compile()

    def run(steps: int) -> float:
        for _ in range(steps):
            y = product(x, x)
        y.block_until_ready()
        return 0.0

    return run, {"macs": size**3, "unit": 1}
