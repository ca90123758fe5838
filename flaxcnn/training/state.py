"""All that a run is at one step: arrays only, so one call saves it."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from flaxcnn.errors import UserError
from flaxcnn.models import init
from flaxcnn.training.freeze import NOTHING_HELD, Freeze, overlay, select_kernels


class TrainState(struct.PyTreeNode):
    """What a step reads and writes.

    `key` is a typed root key that is never advanced: step s draws from `fold_in(key, s)`, so what
    it sees does not depend on where the run was started. `ema` is the exponential moving average
    of `params`, or None; `slow` is lookahead's copy of (`params`, `batch_stats`), or None. Frozen
    parameters are in `params` alone. `mask` (bool) and `leaders` (int32, of kernels) are what
    `masks.py` keeps of the trained ones, or None.
    """

    step: jax.Array  # int32 [], optimizer updates done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    slow: Any
    key: jax.Array
    mask: Any = None
    leaders: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What inference uses: the averaged parameters where there are any.

        Batch statistics are the current ones. They are running averages already, and averaged once
        more they lag behind: for `digits_cnn` with BatchNorm and decay 0.99 the current ones had
        the lower test loss in 22 of 24 comparisons (Adam at 0.003, cosine, and at 0.01; seeds 0 to
        2; after 2, 4, 6 and 8 epochs), 0.317 instead of 0.382 after 2, 0.059 both after 8.
        """
        params = self.params if self.ema is None else overlay(self.params, self.ema)
        return {"params": params, "batch_stats": self.batch_stats}


def make_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: Sequence[int],
    *,
    seed: int,
    ema: bool = False,
    lookahead: bool = False,
    freeze: Freeze = NOTHING_HELD,
    masked: bool = False,
    shared: bool = False,
    initialize: Callable[[Any], Any] | None = None,
) -> TrainState:
    """A run at step 0; `initialize` changes the variables that the network starts with.

    With `masked` and `shared` there is room for what `masks.hold` fills in: nothing is kept yet.

    Raises UserError if the network cannot take `image_shape` (H, W, C).
    """
    root_key = jax.random.key(seed)
    init_key, noise_key = jax.random.split(root_key)
    try:
        variables = init(model, {"params": init_key, "dropout": noise_key}, image_shape)
    except UserError as error:
        raise UserError(f"model: {error}") from error
    if initialize is not None:
        variables = initialize(variables)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copies: the step donates its state, and one buffer cannot be donated twice.
    copy = functools.partial(jax.tree.map, jnp.copy)
    trained = freeze.trained(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(trained),
        ema=copy(trained) if ema else None,
        slow=copy((trained, batch_stats)) if lookahead else None,
        key=root_key,
        mask=jax.tree.map(lambda p: jnp.ones(p.shape, bool), trained) if masked else None,
        leaders=jax.tree.map(_lead_themselves, select_kernels(trained)) if shared else None,
    )


def _lead_themselves(kernel: jax.Array) -> jax.Array:
    return jnp.arange(kernel.size, dtype=jnp.int32).reshape(kernel.shape)


def hash_tree(tree: Any) -> str:
    """SHA-256 of every leaf's path, type, shape and bytes, in the order of the tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # the bytes themselves, not a copy
    return digest.hexdigest()


def hash_layout(tree: Any) -> str:
    """SHA-256 of every leaf's path, type and shape; the leaves may be shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
    return digest.hexdigest()
