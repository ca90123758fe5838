"""Convolutions in one to three dimensions, channels last, fast on CPU also inside loops.

XLA:CPU runs a convolution fast when it is NHWC x HWIO -> NHWC without groups. JAX writes gradients
in other layouts and leaves it to the compiler to transpose them, which XLA:CPU does not do inside
loops (jax#12868); grouped and depthwise ones are slow everywhere. So a convolution here is one of
three primitives (`conv_maps.py`) that choose their form per platform (docs/adr/0005). Values and
derivatives of any order are those of `lax.conv_general_dilated`.
"""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.conv_maps import bind_convolve, bind_input_gradient
from flaxcnn.layers.conv_spec import ConvSpec
from flaxcnn.layers.padding import Padding, Pads, Sizes, per_axis, read_padding

Array = jax.Array

_BORDERS = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    input_dilation: Sizes = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Correlates images [N, H, W, C] with a kernel [h, w, C/groups, F] to [N, H', W', F].

    Images may have one to three spatial axes. `padding` is "SAME", "VALID", "SAME_LOWER";
    "CIRCULAR" or "REFLECT", which continue the image; in one dimension "CAUSAL", zeros before the
    first position only; or zeros: a number for every side, or per axis a number or a (before,
    after) pair. An integer holds for all axes. `input_dilation` puts zeros between
    pixels first. `x` and `kernel` have one dtype, which is also the result's; half
    precision is summed in float32. A kernel larger than the padded image gives an empty result.

    On CPU groups are computed in blocks, so that a NaN or an infinity in one group may reach
    others. Raises UserError for sizes and paddings that say nothing, ValueError or TypeError for
    operands that do not fit each other.
    """
    rank = x.ndim - 2
    strides, dilation = per_axis(strides, rank, "strides"), per_axis(dilation, rank, "dilation")
    reach = [(k - 1) * step for k, step in zip(kernel.shape[:-2], dilation, strict=True)]
    spread = per_axis(input_dilation, rank, "input_dilation")
    if max(spread) > 1:
        between = [(0, 0, 0), *((0, 0, step - 1) for step in spread), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), between)
    x, pads = _read_border(x, padding, reach, strides)
    spec = ConvSpec(
        input_size=x.shape[1:-1],
        kernel_size=kernel.shape[:-2],
        strides=strides,
        pads=pads,
        dilation=dilation,
        groups=operator.index(groups),
        precision=_precision(precision),
    )
    return bind_convolve(x, kernel, spec)


def conv_transpose(
    x: Array,
    kernel: Array,
    *,
    strides: Sizes = 1,
    padding: Padding = "SAME",
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Fractionally strided convolution, [N, H, W, C] and [h, w, C/groups, F] -> [N, H', W', F].

    Pixels are spread by the strides and padded, then correlated with the kernel, which is not
    flipped: `lax.conv_transpose`. "SAME" gives H' = H * stride, "VALID" every position that a tap
    reaches, "CIRCULAR" H * stride with what sticks out added on the other side
    (`flax.linen.ConvTranspose`). A number or pair is, as in Flax, zeros around the spread pixels:
    PyTorch's padding p is dilation * (h - 1) - p here. `output_padding` adds that many positions
    at the end of each axis, as in PyTorch. With `transpose_kernel` it is the gradient of `conv` in
    its images: the kernel is [h, w, F/groups, C] and flipped (`torch.nn.ConvTranspose2d`). Raises
    UserError for other paddings.
    """
    rank, groups = x.ndim - 2, operator.index(groups)
    strides, dilation = per_axis(strides, rank, "strides"), per_axis(dilation, rank, "dilation")
    more = per_axis(output_padding, rank, "output_padding")
    reach = [(k - 1) * step for k, step in zip(kernel.shape[:-2], dilation, strict=True)]
    circular = isinstance(padding, str) and padding.upper() == "CIRCULAR"
    if circular and any(more):
        raise UserError("output_padding is given, and means nothing with padding 'CIRCULAR'")
    border = _read_transposed_border("VALID" if circular else padding, reach, strides)
    # The images are what some strided convolution would have put out; its input is wanted.
    sizes, pads = [], []
    for size, (low, high), extra, last, stride in zip(
        x.shape[1:-1], border, more, reach, strides, strict=True
    ):
        sizes.append(max((size - 1) * stride + 1 + low + high + extra - last, 0))
        pads.append((last - low, last - high - extra))
    spec = ConvSpec(
        input_size=tuple(sizes),
        kernel_size=kernel.shape[:-2],
        strides=strides,
        pads=tuple(pads),
        dilation=dilation,
        groups=groups,
        precision=_precision(precision),
    )
    kernel = (
        kernel if transpose_kernel else _exchange_channels(jnp.flip(kernel, range(rank)), groups)
    )
    y = bind_input_gradient(x, kernel, spec)
    if circular:
        whole = [size * stride for size, stride in zip(x.shape[1:-1], strides, strict=True)]
        y = _wrap_around(y, whole, transpose_kernel)
    return y


def _read_border(
    x: Array, padding: Padding, reach: Sequence[int], strides: Sequence[int]
) -> tuple[Array, Pads]:
    """Images, continued if the border is not of zeros, and the zeros to put around them."""
    name = padding.upper() if isinstance(padding, str) else None
    if name in _BORDERS:
        border = [(0, 0), *((last // 2, -(-last // 2)) for last in reach), (0, 0)]
        return jnp.pad(x, border, mode=_BORDERS[name]), ((0, 0),) * len(reach)
    if name == "CAUSAL":
        if len(reach) != 1:
            raise UserError(f"padding is {padding!r}, which is for one dimension, not {len(reach)}")
        return x, ((reach[0], 0),)
    window = [last + 1 for last in reach]
    names = (*_BORDERS, "CAUSAL (one dimension)")
    return x, read_padding(padding, x.shape[1:-1], window, strides, other_names=names)


def _read_transposed_border(padding: Padding, reach: Sequence[int], strides: Sequence[int]) -> Pads:
    """The zeros around images that are spread by the strides, as `lax.conv_transpose` has them."""
    if not isinstance(padding, str):
        return read_padding(padding, reach, reach, strides)
    border = []
    for last, stride in zip(reach, strides, strict=True):
        if padding.upper() == "SAME":
            whole = last + stride - 1
            low = last if stride > last else -(-whole // 2)
        elif padding.upper() == "VALID":
            whole = last + stride - 1 + max(last + 1 - stride, 0)
            low = last
        else:
            raise UserError(
                f"padding is {padding!r}, and of a transposed convolution must be SAME, VALID, "
                "CIRCULAR, an integer, or one integer or (before, after) pair per axis"
            )
        border.append((low, whole - low))
    return tuple(border)


def _exchange_channels(kernel: Array, groups: int) -> Array:
    """[*size, C/groups, F] -> [*size, F/groups, C]: what goes in and out, group by group."""
    *size, width, features = kernel.shape
    kernel = kernel.reshape(*size, width, groups, features // groups)
    return jnp.moveaxis(kernel, -1, -3).swapaxes(-1, -2).reshape(*size, -1, groups * width)


def _wrap_around(y: Array, periods: Sequence[int], transpose_kernel: bool) -> Array:
    """Sums what lies a period apart, so that the first position stays the first.

    Which side gets more of an odd border is a convention of Flax, for kernels of even size.
    """
    for axis, period in enumerate(periods, 1):
        missing = -(y.shape[axis] - period) % (2 * period)
        less, more = missing // 2, -(-missing // 2)
        border = [(0, 0, 0)] * y.ndim
        border[axis] = (less, more, 0) if transpose_kernel else (more, less, 0)
        y = lax.pad(y, jnp.zeros((), y.dtype), border)
        y = y.reshape(*y.shape[:axis], -1, period, *y.shape[axis + 1 :]).sum(axis)
    return y


def _precision(given: lax.PrecisionLike) -> lax.PrecisionLike:
    if given is not None:
        return given
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
