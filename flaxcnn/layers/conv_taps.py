"""What `conv_cpu.py` and `conv_depthwise.py` share: the taps of a kernel, and what they see."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.layers.conv_spec import ConvSpec

Array = jax.Array


def taps(spec: ConvSpec) -> Iterator[tuple[int, ...]]:
    """The positions within the kernel, in row-major order."""
    return itertools.product(*map(range, spec.kernel_size))


def pad(x: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C] with the zeros around them: [N, *padded, C]."""
    border = [(0, 0, 0), *((low, high, 0) for low, high in spec.pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), border)


def see(padded: Array, tap: tuple[int, ...], spec: ConvSpec) -> Array:
    """What one tap of the kernel sees of the padded images: [N, *output, C]."""
    start = [index * step for index, step in zip(tap, spec.dilation, strict=True)]
    stop = [
        first + (size - 1) * stride + 1
        for first, size, stride in zip(start, spec.output_size, spec.strides, strict=True)
    ]
    batch, channels = padded.shape[0], padded.shape[-1]
    return lax.slice(padded, (0, *start, 0), (batch, *stop, channels), (1, *spec.strides, 1))


def flip_kernel(dy: Array, kernel: Array, spec: ConvSpec) -> tuple[Array, Array, ConvSpec]:
    """The input gradient as a convolution: outputs spread by the strides, kernel flipped.

    The last two axes of a kernel with groups are not exchanged: that is left to the caller.
    """
    reach = [(k - 1) * d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    spread = [
        (before - low, size - 1 + low - (out - 1) * stride, stride - 1)
        for before, (low, _), size, out, stride in zip(
            reach, spec.pads, spec.input_size, spec.output_size, spec.strides, strict=True
        )
    ]
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    rank = len(spec.kernel_size)
    kernel = jnp.flip(kernel, range(rank))
    flipped = dataclasses.replace(
        spec, input_size=dy.shape[1:-1], strides=(1,) * rank, pads=((0, 0),) * rank
    )
    return dy, kernel if spec.groups > 1 else kernel.swapaxes(-1, -2), flipped


def widen(x: Array) -> Array:
    """Half precision is multiplied and summed in float32, and rounded once at the end."""
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x
