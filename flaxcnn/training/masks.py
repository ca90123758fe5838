"""Weights that a run keeps at zero, and weights that it keeps equal (Han 2016).

`optimizer.mask_file` is a file of weights (safetensors) with a bool array by the path of each
masked parameter, "conv1/kernel": where it is False the weight is 0 from the first step to the last.
With `optimizer.share`, weights of a kernel that are equal at the start stay equal: each moves by
the sum of their gradients, as the one parameter that they are. Both are arrays of the state, made
at step 0, so that a run resumes, and is evaluated, without the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.training.freeze import overlay, select_kernels
from flaxcnn.training.state import TrainState
from flaxcnn.weights.formats import read_tensors


def read_masks(path: str | Path, params: Any) -> dict[str, np.ndarray]:
    """The bool arrays of `optimizer.mask_file` by parameter; `params` may be shapes.

    Raises UserError for a file that cannot be read, holds none, or does not fit the network.
    """
    try:
        masks = read_tensors(path)
    except UserError as error:
        raise UserError(f"optimizer.mask_file: {str(error).removeprefix('weights: ')}") from None
    shapes = {name: leaf.shape for name, leaf in _flatten(params).items()}
    for name, mask in masks.items():
        if name not in shapes:
            known = ", ".join(list(shapes)[:4])
            raise UserError(
                f"optimizer.mask_file: {path}: no parameter is called {name[:100]}; they are "
                f"called like {known}"
            )
        if mask.dtype != np.bool_:
            raise UserError(f"optimizer.mask_file: {path}: {name} holds {mask.dtype}, not bool")
        if mask.shape != shapes[name]:
            raise UserError(
                f"optimizer.mask_file: {path}: {name} has shape {mask.shape}, and the parameter "
                f"{shapes[name]}"
            )
    if not masks:
        raise UserError(f"optimizer.mask_file: {path} holds no mask")
    return masks


def hold(state: TrainState, masks: Mapping[str, np.ndarray]) -> TrainState:
    """`state`, at step 0, with what it keeps: zeros by `masks`, and whom each weight equals."""
    if state.mask is not None:
        # Frozen parameters have no place in `mask`, and are masked like the others.
        params = _flatten(state.params)
        zeroed = {name: jnp.where(mask, params[name], 0) for name, mask in masks.items()}
        free = _flatten(state.mask)
        free |= {name: jnp.asarray(mask) for name, mask in masks.items() if name in free}
        mask = traverse_util.unflatten_dict(free, sep="/")
        state = state.replace(
            params=traverse_util.unflatten_dict(params | zeroed, sep="/"),
            ema=keep_zeros(mask, state.ema) if state.ema else state.ema,
            slow=(keep_zeros(mask, state.slow[0]), state.slow[1]) if state.slow else state.slow,
            mask=mask,
        )
    if state.leaders is not None:
        params = _flatten(state.params)
        found = {name: _find_leaders(np.asarray(params[name])) for name in _flatten(state.leaders)}
        state = state.replace(leaders=traverse_util.unflatten_dict(found, sep="/"))
    return state


def _find_leaders(kernel: np.ndarray) -> jax.Array:
    """For each weight the flat index of the first that has its value: int32, of its shape."""
    _, first, group = np.unique(kernel.reshape(-1), return_index=True, return_inverse=True)
    return jnp.asarray(first[group.reshape(kernel.shape)], jnp.int32)


def keep_zeros(mask: Any, tree: Any) -> Any:
    """`tree` with 0 where the mask is False; None is no mask."""
    if mask is None:
        return tree
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), mask, tree)


def sum_equal(leaders: Any, grads: Any) -> Any:
    """The gradients, each of a shared weight the sum over those that share it."""
    if leaders is None:
        return grads

    def total(leader: jax.Array, grad: jax.Array) -> jax.Array:
        sums = jax.ops.segment_sum(grad.reshape(-1), leader.reshape(-1), grad.size)
        return sums[leader]

    return overlay(grads, jax.tree.map(total, leaders, select_kernels(grads)))


def keep_equal(leaders: Any, params: Any) -> Any:
    """The parameters, each shared weight as the first of those that share it.

    They have moved alike; but an update is not bound to be computed alike for each.
    """
    if leaders is None:
        return params

    def follow(leader: jax.Array, kernel: jax.Array) -> jax.Array:
        return kernel.reshape(-1)[leader]

    return overlay(params, jax.tree.map(follow, leaders, select_kernels(params)))


def _flatten(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]
