"""Convolutions in one to three dimensions, channels last, fast on CPU also inside loops.

XLA:CPU runs a convolution fast when it is NHWC x HWIO -> NHWC without groups. JAX writes gradients
in other layouts and leaves it to the compiler to turn them round, which XLA:CPU does not do inside
loops (jax#12868): there they are about a hundred times slower; grouped and depthwise ones are slow
everywhere. So a convolution here is one of three primitives (`conv_maps.py`) that choose their form
per platform. Values and derivatives of any order are those of `lax.conv_general_dilated`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax

from flaxcnn.layers.channels import spread_per_channel
from flaxcnn.layers.conv_maps import bind_convolve, bind_input_gradient
from flaxcnn.layers.conv_spec import ConvSpec

Array = jax.Array
Sizes = int | Sequence[int]
Padding = str | int | Sequence[tuple[int, int]]


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Sizes = 1,
    padding: Padding = "SAME",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Correlates images [N, H, W, C] with a kernel [h, w, C/groups, F] to [N, H', W', F].

    Images may have one to three spatial axes. `padding` is "SAME", "VALID", or zeros: a number on
    every side, or one (before, after) pair per axis. An integer holds for all axes. `x` and
    `kernel` have one dtype, which is also the result's. Raises ValueError or TypeError for
    operands that do not fit each other.
    """
    rank = x.ndim - 2
    kernel_size = kernel.shape[:-2]
    strides, dilation = _per_axis(strides, rank), _per_axis(dilation, rank)
    if isinstance(padding, str):
        window = [(size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    elif isinstance(padding, int):
        padding = ((padding, padding),) * rank
    spec = ConvSpec(
        input_size=x.shape[1:-1],
        kernel_size=kernel_size,
        strides=strides,
        pads=tuple((int(low), int(high)) for low, high in padding),
        dilation=dilation,
        groups=groups,
        precision=_precision(),
    )
    return bind_convolve(x, kernel, spec)


def conv_transpose(x: Array, kernel: Array, *, strides: Sizes = 1, padding: str = "SAME") -> Array:
    """Fractionally strided convolution, [N, H, W, C] and [h, w, C, F] -> [N, H', W', F].

    "SAME" gives H' = H * stride, "VALID" every position that a tap reaches. Equal to
    `lax.conv_transpose`, which does not turn the kernel round.
    """
    rank = x.ndim - 2
    strides, kernel_size = _per_axis(strides, rank), kernel.shape[:-2]
    # The images are what some strided convolution would have put out; its input is wanted.
    sizes, pads = [], []
    for size, k, stride in zip(x.shape[1:-1], kernel_size, strides, strict=True):
        if padding == "SAME":
            out = size * stride
            before = k - 1 if stride > k - 1 else -(-(k + stride - 2) // 2)
        else:
            out = size * stride + max(k - stride, 0)
            before = k - 1
        low = k - 1 - before
        sizes.append(out)
        pads.append((low, (size - 1) * stride + k - out - low))
    spec = ConvSpec(
        input_size=tuple(sizes),
        kernel_size=kernel_size,
        strides=strides,
        pads=tuple(pads),
        dilation=(1,) * rank,
        groups=1,
        precision=_precision(),
    )
    return bind_input_gradient(x, jnp.flip(kernel, range(rank)).swapaxes(-1, -2), spec)


class Conv(nn.Module):
    """Convolution with the parameters of `flax.linen.Conv`.

    `kernel` is float32 [*kernel_size, C/groups, features] and `bias` float32 [features]. An integer
    `kernel_size` means two dimensions; integer `strides` and `dilation` hold for all axes.
    `padding` is "SAME", "VALID", a number of zeros on every side, or one (before, after) pair per
    axis. Computes in `dtype`.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        size = _per_axis(self.kernel_size, 2)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return _add_bias(self, y)


class ConvTranspose(nn.Module):
    """Fractionally strided convolution with the parameters of `flax.linen.ConvTranspose`.

    `kernel` is float32 [*kernel_size, C, features]; see `conv_transpose` for sizes.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes = 1
    padding: str = "SAME"
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        shape = (*_per_axis(self.kernel_size, 2), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        y = conv_transpose(x, kernel, strides=self.strides, padding=self.padding)
        return _add_bias(self, y)


class DepthwiseConv(nn.Module):
    """One filter per channel, or `multiplier` of them: [N, H, W, C] -> [N, H', W', C * multiplier].

    The parameters are those of a `Conv` with C groups: `kernel` [*kernel_size, 1, C * multiplier].
    """

    kernel_size: Sizes
    multiplier: int = 1
    strides: Sizes = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', C * multiplier]."""
        features = x.shape[-1] * self.multiplier
        shape = (*_per_axis(self.kernel_size, 2), 1, features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=x.shape[-1],
        )
        return _add_bias(self, y)


class SeparableConv(nn.Module):
    """A depthwise convolution, then a 1x1 one to `features` (Sifre 2014; Chollet 2017).

    Parameters: `depthwise/kernel`, `pointwise/kernel` and, with `use_bias`, `pointwise/bias`.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes = 1
    padding: Padding = "SAME"
    dilation: Sizes = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        depthwise = DepthwiseConv(
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="depthwise",
        )
        pointwise = Conv(
            self.features,
            1,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="pointwise",
        )
        return pointwise(depthwise(x))


def _add_bias(module: "Conv | ConvTranspose | DepthwiseConv", y: Array) -> Array:
    if not module.use_bias:
        return y
    bias = module.param("bias", module.bias_init, (y.shape[-1],), jnp.float32)
    return y + spread_per_channel(jnp.asarray(bias, module.dtype), y)


def _per_axis(value: Sizes, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _precision() -> lax.PrecisionLike:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
