"""The fixed part of a convolution, and the three maps in the form that `lax` gives them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.compat import vary_alike

Array = jax.Array

_LAYOUTS = {
    1: ("NHC", "HIO", "NHC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NHWDC", "HWDIO", "NHWDC"),
}


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """All of a convolution but its operands; the tuples have one entry per spatial axis.

    The sizes are here because neither follows from the other operand and the outputs.
    """

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: lax.PrecisionLike

    @property
    def output_size(self) -> tuple[int, ...]:
        """Size of the maps that come out, 0 where the kernel is larger than the image."""
        return tuple(
            max((padded - (kernel - 1) * dilation - 1) // stride + 1, 0)
            for padded, kernel, dilation, stride in zip(
                self.padded_size, self.kernel_size, self.dilation, self.strides, strict=True
            )
        )

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Size of the images with their padding."""
        return tuple(
            size + low + high for size, (low, high) in zip(self.input_size, self.pads, strict=True)
        )


def convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C], kernel [*kernel, C/groups, F] -> outputs [N, *output, F]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        spec.strides,
        spec.pads,
        rhs_dilation=spec.dilation,
        dimension_numbers=_LAYOUTS[len(spec.input_size)],
        feature_group_count=spec.groups,
        precision=spec.precision,
    )


def input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """The transpose of `convolve` in its images: outputs, kernel -> images."""
    channels = kernel.shape[-2] * spec.groups
    x = _zeros_like((dy.shape[0], *spec.input_size, channels), dy)
    (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel, spec), x)(dy)
    return dx


def transposed_convolve(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """`input_gradient` as one convolution of outputs that are spread by the strides."""
    rank, (width, features) = len(spec.kernel_size), kernel.shape[-2:]
    kernel = jnp.flip(kernel, range(rank)).reshape(*spec.kernel_size, width, spec.groups, -1)
    kernel = jnp.moveaxis(kernel, -1, -3).swapaxes(-1, -2)  # [*kernel, F/groups, groups, C/groups]
    pads = []
    for size, taps, step, (low, _), out, stride in zip(
        spec.input_size,
        spec.kernel_size,
        spec.dilation,
        spec.pads,
        spec.output_size,
        spec.strides,
        strict=True,
    ):
        before = (taps - 1) * step - low
        pads.append((before, size + (taps - 1) * step - before - (out - 1) * stride - 1))
    return lax.conv_general_dilated(
        dy,
        kernel.reshape(*spec.kernel_size, features // spec.groups, -1),
        (1,) * rank,
        pads,
        lhs_dilation=spec.strides,
        rhs_dilation=spec.dilation,
        dimension_numbers=_LAYOUTS[rank],
        feature_group_count=spec.groups,
        precision=spec.precision,
    )


def kernel_gradient(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """The transpose of `convolve` in its kernel: images, outputs -> kernel."""
    channels = x.shape[-1] // spec.groups
    kernel = _zeros_like((*spec.kernel_size, channels, dy.shape[-1]), x)
    (dkernel,) = jax.linear_transpose(lambda kernel: convolve(x, kernel, spec), kernel)(dy)
    return dkernel


def _zeros_like(shape: tuple[int, ...], operand: Array) -> Array:
    """What a transposed map is linear in: zeros that vary over a `shard_map`'s axes as its operand.

    With an abstract array, which varies over none, the transpose would be summed over devices.
    """
    return vary_alike(jnp.zeros(shape, operand.dtype), operand)[0]
