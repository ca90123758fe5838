"""Pruning by magnitude, as much of each layer as it bears."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from flaxcnn.errors import UserError

Array = np.ndarray


def list_kernels(params: Mapping[str, Any]) -> dict[str, Array]:
    """The kernels of nested parameters by their path, "conv1/kernel"; biases and norms are none."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")  # pyright: ignore
    return {
        name: np.asarray(leaf)
        for name, leaf in flat.items()
        if name.rpartition("/")[2] == "kernel" and leaf.ndim > 1
    }


def prune(params: Mapping[str, Any], sparsity: float) -> dict[str, Array]:
    """Masks that leave out `sparsity` of all kernels' weights: bool arrays, False is pruned.

    Within a layer the smallest go first. Layers are compared by the share that a weight has in its
    layer's squared norm, of what is left when the smaller ones are gone: w^2 / (the sum of w^2 over
    it and the larger ones; Lee 2021, LAMP, arXiv:2010.07611, equation 4). So a layer of few weights
    keeps more of them, and each keeps its largest. Weights that are 0 count as pruned.

    Raises UserError for a sparsity outside of [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), got {sparsity}")
    kernels = list_kernels(params)
    if not kernels:
        raise UserError("the network has no kernels to prune")
    scores = {name: _score(kernel) for name, kernel in kernels.items()}
    pooled = np.concatenate([score.reshape(-1) for score in scores.values()])
    count = round(sparsity * len(pooled))
    limit = np.partition(pooled, count)[count] if count else 0.0
    return {name: (score >= limit) & (kernels[name] != 0) for name, score in scores.items()}


def _score(kernel: Array) -> Array:
    squares = np.square(kernel.astype(np.float64).reshape(-1))
    order = np.argsort(squares, kind="stable")
    tails = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros(len(squares))
    np.divide(squares[order], tails, out=tails, where=tails > 0)
    scores[order] = tails
    return scores.reshape(kernel.shape)


def apply_masks(params: Mapping[str, Any], masks: Mapping[str, Array]) -> dict[str, Any]:
    """The parameters with 0 where a mask is False."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")  # pyright: ignore
    pruned = {name: np.where(mask, flat[name], np.float32(0)) for name, mask in masks.items()}
    return traverse_util.unflatten_dict(flat | pruned, sep="/")
