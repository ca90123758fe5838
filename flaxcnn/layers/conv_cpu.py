"""The three maps of a convolution as XLA:CPU runs them fast, also inside loops (docs/adr/0005).

Which way is taken is decided at the top, in `convolve`, `input_gradient` and `kernel_gradient`,
from the shapes alone; each way is one function below, or in `conv_depthwise.py`. The canonical
convolution (NHWC x HWIO -> NHWC, without groups) is the one form that XLA:CPU gives to its fast
kernel.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.compat import vary_alike
from flaxcnn.layers import conv_depthwise, conv_spec
from flaxcnn.layers.conv_spec import ConvSpec
from flaxcnn.layers.conv_taps import flip_kernel, pad, see, taps, widen

Array = jax.Array

_FEW_CHANNELS = 8  # below this a product per tap is too narrow
_BLOCK_CHANNELS = 32  # groups are joined until a block has this many
_UNROLLED_BLOCKS = 8  # more are a loop


def convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C], kernel [*kernel, C/groups, F] -> outputs [N, *output, F]."""
    if _is_depthwise(spec, x.shape[-1]):
        return conv_depthwise.convolve(x, kernel, spec)
    if spec.groups > 1:
        return _convolve_by_blocks(x, kernel, spec)
    if math.prod(spec.kernel_size) == 1:
        return _pointwise_convolve(x, kernel, spec)
    return conv_spec.convolve(x, kernel, spec)


def input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Outputs [N, *output, F], kernel [*kernel, C/groups, F] -> images [N, *input, C]."""
    if _is_depthwise(spec, kernel.shape[-2] * spec.groups):
        return conv_depthwise.input_gradient(dy, kernel, spec)
    if spec.groups > 1:
        return _input_gradient_by_blocks(dy, kernel, spec)
    if math.prod(spec.kernel_size) == 1:
        return _pointwise_input_gradient(dy, kernel, spec)
    if max(spec.strides) > 1 and max(spec.dilation) == 1:
        return _input_gradient_by_phase(dy, kernel, spec)
    return conv_spec.convolve(*flip_kernel(dy, kernel, spec))


def kernel_gradient(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """Images [N, *input, C], outputs [N, *output, F] -> kernel [*kernel, C/groups, F]."""
    channels = x.shape[-1]
    if _is_depthwise(spec, channels):
        return conv_depthwise.kernel_gradient(x, dy, spec)
    if spec.groups > 1:
        return _kernel_gradient_by_blocks(x, dy, spec)
    if max(spec.strides) > 1 and channels < _FEW_CHANNELS and max(spec.dilation) == 1:
        return _kernel_gradient_by_phase(x, dy, spec)
    if max(spec.strides) == 1 and channels > 2 and _kernel_gradient_is_a_convolution(spec):
        return _kernel_gradient_by_convolution(x, dy, spec)
    if channels < _FEW_CHANNELS:
        return _kernel_gradient_by_example(x, dy, spec)
    return _kernel_gradient_by_taps(x, dy, spec)


def _is_depthwise(spec: ConvSpec, channels: int) -> bool:
    return spec.groups == channels > 1


# Dense


def _pointwise_convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    seen = see(pad(x, spec), (0,) * len(spec.kernel_size), spec)
    return lax.dot_general(
        seen,
        kernel.reshape(kernel.shape[-2:]),
        (((seen.ndim - 1,), (0,)), ((), ())),
        precision=spec.precision,
    )


def _pointwise_input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    dx = lax.dot_general(
        dy,
        kernel.reshape(kernel.shape[-2:]).T,
        (((dy.ndim - 1,), (0,)), ((), ())),
        precision=spec.precision,
    )
    spread = [
        (-low, size - 1 + low - (out - 1) * stride, stride - 1)
        for (low, _), size, out, stride in zip(
            spec.pads, spec.input_size, spec.output_size, spec.strides, strict=True
        )
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *spread, (0, 0, 0)])


def _input_gradient_by_phase(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Strided: one stride-1 convolution for each position modulo the strides, interleaved.

    A pixel is seen only by the taps of its own phase, so nothing is multiplied by the zeros that
    spreading `dy` would put in.
    """
    rank, strides, output_size = len(spec.strides), spec.strides, spec.output_size
    counts = [-(-size // stride) for size, stride in zip(spec.padded_size, strides, strict=True)]
    flipped = jnp.flip(kernel, range(rank)).swapaxes(-1, -2)
    phases = []
    for phase in itertools.product(*map(range, strides)):
        axes = tuple(zip(phase, spec.kernel_size, strides, strict=True))
        taps = tuple(len(range(p, size, stride)) for p, size, stride in axes)
        if 0 in taps:  # a stride beyond the kernel: pixels that nothing sees
            phases.append(jnp.zeros((dy.shape[0], *counts, flipped.shape[-1]), dy.dtype))
            continue
        part = flipped[
            tuple(slice((size - 1 - p) % stride, None, stride) for p, size, stride in axes)
        ]
        part_spec = ConvSpec(
            input_size=output_size,
            kernel_size=taps,
            strides=(1,) * rank,
            pads=tuple(
                (t - 1, n - out) for t, n, out in zip(taps, counts, output_size, strict=True)
            ),
            dilation=(1,) * rank,
            groups=1,
            precision=spec.precision,
        )
        phases.append(convolve(dy, part, part_spec))
    # [*strides, N, *counts, C] -> [N, count, stride, count, stride, ..., C]
    dx = jnp.stack(phases).reshape(*strides, *phases[0].shape)
    pairs = [axis for i in range(rank) for axis in (rank + 1 + i, i)]
    whole = [count * stride for count, stride in zip(counts, strides, strict=True)]
    dx = dx.transpose(rank, *pairs, 2 * rank + 1).reshape(dy.shape[0], *whole, -1)
    crop = [
        (-low, low + size - end, 0)
        for (low, _), size, end in zip(spec.pads, spec.input_size, whole, strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *crop, (0, 0, 0)])


def _kernel_gradient_is_a_convolution(spec: ConvSpec) -> bool:
    """Whether `_kernel_gradient_by_convolution` gets the kernel it is written for."""
    if len(spec.kernel_size) != 2:
        return False
    rows, width = spec.input_size[0], spec.padded_size[1]
    return min(spec.pads[0]) >= 0 and (rows + 1) * spec.output_size[1] <= rows * width


def _kernel_gradient_by_convolution(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """Stride 1: images [C, *input, N] convolved with outputs [*output, N, F].

    XLA:CPU has two kernels for a canonical convolution, and for windows as large as these Eigen's
    is faster than YNNPACK's, which XLA prefers, and than a product per tap (docs/adr/0005).
    YNNPACK's refuses windows with more rows than the images, so the outputs get rows of zeros; XLA
    exchanges operands if the window is the larger one, so the images' columns are padded
    beforehand.
    """
    (low, _), (left, right) = spec.pads
    rows, reach = x.shape[1], (spec.kernel_size[0] - 1) * spec.dilation[0]
    missing = max(rows + 1 - spec.output_size[0], 0)
    high = reach + spec.output_size[0] + missing - rows - low
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), (0, 0, 0), (left, right, 0), (0, 0, 0)])
    dy = lax.pad(dy, zero, [(0, 0, 0), (0, missing, 0), (0, 0, 0), (0, 0, 0)])
    # The barrier keeps the padding out of the convolution.
    x, dy = lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))
    kernel = lax.conv_general_dilated(
        x,
        dy,
        spec.dilation,
        [(low, high), (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=spec.precision,
    )
    return kernel.transpose(1, 2, 0, 3)


def _kernel_gradient_by_phase(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """Strided, few channels: the images' positions modulo the strides as channels, then stride 1.

    With many channels it multiplies too many zeros (docs/adr/0005).
    """
    rank, strides, channels = len(spec.strides), spec.strides, x.shape[-1]
    taps = tuple(-(-k // stride) for k, stride in zip(spec.kernel_size, strides, strict=True))
    counts = tuple(out + t - 1 for out, t in zip(spec.output_size, taps, strict=True))
    border = [
        (low, count * stride - size - low, 0)
        for (low, _), count, stride, size in zip(
            spec.pads, counts, strides, spec.input_size, strict=True
        )
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *border, (0, 0, 0)])
    # [N, count, stride, count, stride, ..., C] -> [N, *counts, strides and C]
    pairs = [n for pair in zip(counts, strides, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *pairs, channels)
    to_end = [*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2)]
    x = x.transpose(0, *to_end, 2 * rank + 1).reshape(x.shape[0], *counts, -1)
    phased = dataclasses.replace(
        spec,
        input_size=counts,
        kernel_size=taps,
        strides=(1,) * rank,
        pads=((0, 0),) * rank,
    )
    kernel = kernel_gradient(x, dy, phased).reshape(*taps, *strides, channels, -1)
    pairs = [axis for i in range(rank) for axis in (i, rank + i)]
    whole = [t * stride for t, stride in zip(taps, strides, strict=True)]
    kernel = kernel.transpose(*pairs, 2 * rank, 2 * rank + 1).reshape(*whole, channels, -1)
    return kernel[tuple(slice(k) for k in spec.kernel_size)]


def _kernel_gradient_by_taps(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """One matrix product per tap of the kernel: what the tap sees of the images, times `dy`."""
    # The barrier keeps what made the images from being computed again for every tap.
    padded, dy = lax.optimization_barrier((pad(x, spec), dy.reshape(-1, dy.shape[-1])))
    products = [
        lax.dot_general(
            see(padded, tap, spec).reshape(-1, x.shape[-1]),
            dy,
            (((0,), (0,)), ((), ())),
            precision=spec.precision,
        )
        for tap in taps(spec)
    ]
    return jnp.stack(products).reshape(*spec.kernel_size, *products[0].shape)


def _kernel_gradient_by_example(x: Array, dy: Array, spec: ConvSpec) -> Array:
    """Few channels: one matrix product per example, with all taps and channels as its rows.

    A product per tap would be too narrow (docs/adr/0005).
    """
    count, channels = x.shape[0], x.shape[-1]
    padded = pad(x, spec)
    seen = [
        see(padded, tap, spec)[..., channel].reshape(count, -1)
        for tap in taps(spec)
        for channel in range(channels)
    ]
    products = lax.dot_general(
        lax.optimization_barrier(jnp.stack(seen, axis=1)),
        dy.reshape(count, -1, dy.shape[-1]),
        (((2,), (1,)), ((0,), (0,))),
        precision=spec.precision,
        preferred_element_type=widen(x).dtype,
    )
    return products.sum(0).astype(x.dtype).reshape(*spec.kernel_size, channels, -1)


# Grouped: groups are joined to blocks, each a dense convolution with a kernel that is zero between
# groups. So a NaN or an infinity in one group reaches the others of its block. For one convolution
# with groups XLA gathers a batch that is divided among devices (xla#47945; docs/adr/0005).


def _block_groups(spec: ConvSpec, channels: int) -> int:
    """How many groups make a block: a divisor of `groups`."""
    width = channels // spec.groups
    fitting = [
        size
        for size in range(1, spec.groups + 1)
        if spec.groups % size == 0 and size * width <= max(_BLOCK_CHANNELS, width)
    ]
    return max(fitting)


def _by_block(
    function: Callable[..., Array], blocks: int, spec: ConvSpec, *operands: Array
) -> Array:
    """Each block by itself; every operand and result has the blocks along its last axis.

    Many blocks are a loop, which compiles one of them and not all (docs/adr/0005).
    """
    dense = dataclasses.replace(spec, groups=1)
    if blocks <= _UNROLLED_BLOCKS:
        parts = zip(*(jnp.split(array, blocks, axis=-1) for array in operands), strict=True)
        return jnp.concatenate([function(*part, dense) for part in parts], axis=-1)

    def run_one(block: Array | int) -> Array:
        widths = (array.shape[-1] // blocks for array in operands)
        parts = (
            lax.dynamic_slice_in_dim(array, block * width, width, axis=-1)
            for array, width in zip(operands, widths, strict=True)
        )
        return function(*parts, dense)

    def put_one(block: Array, whole: Array) -> Array:
        part = run_one(block)
        return lax.dynamic_update_slice_in_dim(whole, part, block * part.shape[-1], axis=-1)

    *shape, width = jax.eval_shape(run_one, 0).shape
    whole = jnp.zeros((*shape, blocks * width), operands[0].dtype)
    whole, _ = vary_alike(whole, operands[0])  # as the body's result does inside `shard_map`
    return lax.fori_loop(0, blocks, put_one, whole)


def _join_groups(kernel: Array, size: int, spec: ConvSpec) -> Array:
    """[*kernel, C/groups, F] -> [*kernel, size * C/groups, F]: zero between a block's groups."""
    *taps, width, features = kernel.shape
    kernel = kernel.reshape(*taps, 1, width, -1, size, features // spec.groups)
    own = jnp.eye(size, dtype=kernel.dtype).reshape(*(1 for _ in taps), size, 1, 1, size, 1)
    return (kernel * own).reshape(*taps, size * width, features)


def _convolve_by_blocks(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    size = _block_groups(spec, x.shape[-1])
    kernel = _join_groups(kernel, size, spec)
    return _by_block(convolve, spec.groups // size, spec, x, kernel)


def _input_gradient_by_blocks(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    size = _block_groups(spec, kernel.shape[-2] * spec.groups)
    kernel = _join_groups(kernel, size, spec)
    return _by_block(input_gradient, spec.groups // size, spec, dy, kernel)


def _kernel_gradient_by_blocks(x: Array, dy: Array, spec: ConvSpec) -> Array:
    size, width = _block_groups(spec, x.shape[-1]), x.shape[-1] // spec.groups
    kernel = _by_block(kernel_gradient, spec.groups // size, spec, x, dy)
    kernel = kernel.reshape(*spec.kernel_size, size, width, -1, size, dy.shape[-1] // spec.groups)
    # A group's own channels: the diagonal of the two axes of a block's groups.
    own = jnp.stack([kernel[..., i, :, :, i, :] for i in range(size)], axis=-2)
    return own.reshape(*spec.kernel_size, width, -1)
