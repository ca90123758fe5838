"""Depthwise convolutions on CPU: groups of one channel, each with F/C filters.

Sums of shifted products, which XLA fuses into one loop over the outputs.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.layers.conv_spec import ConvSpec
from flaxcnn.layers.conv_taps import flip_kernel, pad, see, taps, widen

Array = jax.Array


def convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C], kernel [*kernel, 1, F] -> outputs [N, *output, F]."""
    padded, filters = pad(x, spec), widen(_per_channel(kernel, x.shape[-1]))
    terms = [
        widen(see(padded, tap, spec))[..., None] * _broadcast(filters[tap], x.ndim)
        for tap in taps(spec)
    ]
    total = functools.reduce(operator.add, terms).astype(x.dtype)
    return total.reshape(*total.shape[:-2], -1)


def input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Outputs [N, *output, F], kernel [*kernel, 1, F] -> images [N, *input, C]."""
    spread, flipped, flipped_spec = flip_kernel(dy, kernel, spec)
    filters = widen(_per_channel(flipped, spec.groups))
    spread = spread.reshape(*spread.shape[:-1], spec.groups, -1)
    terms = [
        widen(see(spread[..., m], tap, flipped_spec))
        * _broadcast(filters[(*tap, slice(None), m)], dy.ndim)
        for tap in taps(spec)
        for m in range(filters.shape[-1])
    ]
    return functools.reduce(operator.add, terms).astype(dy.dtype)


def kernel_gradient(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C], outputs [N, *output, F] -> kernel [*kernel, 1, F].

    The sums of all taps in one loop along the last axis of the positions, then the rest (a sum per
    tap is several times slower: docs/adr/0005).
    """
    padded, dy = lax.optimization_barrier((pad(x, spec), dy))
    dy = dy.reshape(*dy.shape[:-1], spec.groups, -1)
    products = [widen(see(padded, tap, spec))[..., None] * widen(dy) for tap in taps(spec)]
    zeros = (jnp.zeros((), products[0].dtype),) * len(products)
    add = functools.partial(jax.tree.map, operator.add)
    # Not over the examples, which may be divided among devices.
    rows = lax.reduce(tuple(products), zeros, add, (x.ndim - 2,))
    rows = lax.optimization_barrier(jnp.stack(rows))
    sums = rows.sum(tuple(range(1, x.ndim - 1))).astype(x.dtype)
    return sums.reshape(*spec.kernel_size, 1, -1)


def _per_channel(kernel: Array, channels: int) -> Array:
    """[*kernel, 1, F] -> [*kernel, C, F/C]: the filters of each channel."""
    return kernel.reshape(*kernel.shape[:-2], channels, -1)


def _broadcast(filters: Array, ndim: int) -> Array:
    """Leading axes of size 1, so that per-channel values meet [N, *size, C, ...]."""
    return filters.reshape((1,) * (ndim - 1) + filters.shape)
