"""The layers around the convolutions of `conv.py`: parameters, compute type, bias."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.channels import broadcast_channels
from flaxcnn.layers.conv import conv, conv_transpose
from flaxcnn.layers.padding import Padding, Sizes, as_integer, per_axis

Array = jax.Array


class _Convolution(nn.Module, kw_only=True):
    """What all convolutions have in common.

    Parameters are of `param_dtype`; images, kernel and bias are converted to `dtype`, or if that
    is None promoted to one as in Flax, whose default that is.
    """

    use_bias: bool = True
    dtype: Dtype | None = jnp.float32
    param_dtype: Dtype = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()


class Conv(_Convolution):
    """Convolution with the parameters, values and keywords of `flax.linen.Conv`.

    `kernel` is [*kernel_size, C/groups, features], float32 and multiplied by `mask` if there is
    one, `bias` [features]. Computes in `dtype`, float32 by default (Flax: None, promoted from
    images and parameters). An integer `kernel_size` takes its dimensions from images with one batch
    axis (Flax: one dimension); a sequence allows none or several. Integer `strides` and `dilation`
    hold for all axes. For `padding` see `conv`. `feature_group_count` and `kernel_dilation` are
    Flax's names of `groups` and `dilation`. Raises UserError for what does not fit.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes | None = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1
    groups: int = 1
    input_dilation: Sizes | None = 1
    mask: Array | None = None
    kernel_dilation: Sizes | None = None
    feature_group_count: int | None = None

    def __post_init__(self) -> None:
        """Takes Flax's names."""
        _take_alias(self, "dilation", "kernel_dilation")
        _take_alias(self, "groups", "feature_group_count")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        convolve = functools.partial(
            conv,
            strides=_or_one(self.strides),
            padding=self.padding,
            dilation=self.dilation,
            input_dilation=_or_one(self.input_dilation),
            groups=self.groups,
        )
        size = _kernel_size(self.kernel_size, x)
        shape = (*size, _divide(x.shape[-1], self.groups), self.features)
        return _apply(self, convolve, x, shape, self.features, self.mask)


class ConvTranspose(_Convolution):
    """Fractionally strided convolution, the parameters and values of `flax.linen.ConvTranspose`.

    `kernel` is [*kernel_size, C/groups, features], or with `transpose_kernel` [*kernel_size,
    features/groups, C]; see `conv_transpose` for sizes, paddings and what PyTorch has. Types,
    `kernel_size`, `mask` and batch axes as in `Conv`; `kernel_dilation` is Flax's name of
    `dilation`. Flax has neither `groups` nor `output_padding`.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes | None = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1
    groups: int = 1
    output_padding: Sizes = 0
    transpose_kernel: bool = False
    mask: Array | None = None
    kernel_dilation: Sizes | None = None

    def __post_init__(self) -> None:
        """Takes Flax's name."""
        _take_alias(self, "dilation", "kernel_dilation")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        convolve = functools.partial(
            conv_transpose,
            strides=_or_one(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
            transpose_kernel=self.transpose_kernel,
        )
        size, channels = _kernel_size(self.kernel_size, x), x.shape[-1]
        if self.transpose_kernel:
            shape = (*size, _divide(self.features, self.groups), channels)
        else:
            shape = (*size, _divide(channels, self.groups), self.features)
        return _apply(self, convolve, x, shape, self.features, self.mask)


class DepthwiseConv(_Convolution):
    """One filter per channel, or `multiplier` of them: [N, H, W, C] -> [N, H', W', C * multiplier].

    The parameters are those of a `Conv` with C groups: `kernel` [*kernel_size, 1, C * multiplier].
    """

    kernel_size: Sizes
    multiplier: int = 1
    strides: Sizes = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', C * multiplier]."""
        channels = x.shape[-1]
        convolve = functools.partial(
            conv,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=channels,
        )
        features = channels * self.multiplier
        shape = (*_kernel_size(self.kernel_size, x), 1, features)
        return _apply(self, convolve, x, shape, features)


class SeparableConv(_Convolution):
    """A depthwise convolution, then a 1x1 one to `features` (Sifre 2014; Chollet 2017).

    Parameters: `depthwise/kernel`, `pointwise/kernel` and, with `use_bias`, `pointwise/bias`.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        size = _kernel_size(self.kernel_size, x)
        own = ("dtype", "param_dtype", "precision", "kernel_init")
        shared = {name: getattr(self, name) for name in own}
        depthwise = DepthwiseConv(
            size,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            use_bias=False,
            name="depthwise",
            **shared,
        )
        pointwise = Conv(
            self.features,
            (1,) * len(size),
            use_bias=self.use_bias,
            bias_init=self.bias_init,
            name="pointwise",
            **shared,
        )
        return pointwise(depthwise(x))


def _apply(
    layer: _Convolution,
    convolve: Callable[..., Array],
    x: Array,
    kernel_shape: tuple[int, ...],
    features: int,
    mask: Array | None = None,
) -> Array:
    """Convolves images [..., *size, C], which may have any number of batch axes."""
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise UserError(f"mask has shape {jnp.shape(mask)}, and the kernel has {kernel_shape}")
    kernel = layer.param("kernel", layer.kernel_init, kernel_shape, layer.param_dtype)
    if mask is not None:
        kernel = kernel * jnp.asarray(mask, kernel.dtype)
    bias = None
    if layer.use_bias:
        bias = layer.param("bias", layer.bias_init, (features,), layer.param_dtype)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=layer.dtype)
    image = len(kernel_shape) - 1  # axes of one image with its channels
    batch = x.shape[:-image]
    if len(batch) != 1:
        x = x.reshape(math.prod(batch), *x.shape[-image:])
    y = convolve(x, kernel, precision=layer.precision)
    if bias is not None:
        y = y + broadcast_channels(bias, y)
    return y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])


def _kernel_size(size: Sizes, x: Array) -> tuple[int, ...]:
    rank = x.ndim - 2 if as_integer(size) is not None else len(tuple(size))  # pyright: ignore
    if not 1 <= rank <= 3 or x.ndim <= rank:
        raise UserError(
            f"kernel_size is {size!r}, which does not fit images of shape {x.shape}: they need one "
            "to three axes of space and one of channels"
        )
    return per_axis(size, rank, "kernel_size")


def _divide(channels: int, groups: int) -> int:
    if groups < 1 or channels % groups:
        raise UserError(f"groups is {groups}, and must divide the {channels} channels")
    return channels // operator.index(groups)


def _or_one(sizes: Sizes | None) -> Sizes:
    return 1 if sizes is None else sizes


def _take_alias(layer: Any, name: str, alias: str) -> None:
    """Flax's name of a field; the field keeps what was given, so that copies have it once."""
    value = getattr(layer, alias)
    if value is None:
        return
    if getattr(layer, name) != 1:
        raise UserError(f"{name} and {alias} are one thing, and both are given")
    setattr(layer, name, value)
    setattr(layer, alias, None)
