"""Weights that share values: a codebook of 2^bits for each kernel, by k-means (Han 2016, 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from flaxcnn.compression.prune import list_kernels
from flaxcnn.errors import UserError

Array = np.ndarray

MAX_BITS = 8
_ITERATIONS = 200  # of k-means, which mostly stops before


def share(params: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """The parameters with at most 2^bits values other than 0 in each kernel; zeros stay.

    A kernel that has no more stays as it is. Raises UserError for bits outside of 1..8.
    """
    if not 1 <= bits <= MAX_BITS:
        raise UserError(f"bits must be in 1..{MAX_BITS}, got {bits}")
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")  # pyright: ignore
    shared = {name: share_kernel(k, 2**bits) for name, k in list_kernels(params).items()}
    return traverse_util.unflatten_dict(flat | shared, sep="/")


def share_kernel(kernel: Array, size: int) -> Array:
    """A kernel whose weights other than 0 are moved to the nearest of `size` centroids.

    Centroids start evenly between the smallest and the largest weight, which keeps large weights
    apart (Han 2016, section 3.2), and are moved by Lloyd's iteration until none moves.
    """
    flat = kernel.reshape(-1)
    kept = np.flatnonzero(flat)
    weights = flat[kept].astype(np.float64)
    if len(np.unique(weights)) <= size:
        return kernel
    ordered = np.sort(weights)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], size)
    for _ in range(_ITERATIONS):
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], borders, [len(ordered)]])
        counts = np.diff(ends)
        # One that no weight is nearest to stays where it is.
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights)
    shared = np.zeros(len(flat), np.float32)
    shared[kept] = centroids[nearest].astype(np.float32)
    return shared.reshape(kernel.shape)
