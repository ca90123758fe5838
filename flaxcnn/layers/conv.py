"""Convolution in NHWC with HWIO kernels, differentiable without leaving those layouts on CPU.

XLA:CPU runs a convolution fast when it is NHWC x HWIO -> NHWC. JAX writes the two gradients of a
convolution in other layouts and leaves it to the compiler to turn them round, which XLA:CPU does
not do inside loops (jax#12868): there they are about a hundred times slower.

So a stride-1 convolution here is one of three bilinear maps between images, kernels and outputs,

    convolve(images, kernel) -> outputs
    input_gradient(outputs, kernel) -> images
    kernel_gradient(images, outputs) -> kernel

Each map's transposes are the other two, hence derivatives of every order stay within the three,
and each has a lowering of its own: XLA's native form on GPU and TPU; on CPU canonical layouts for
the first two and matrix products for the third, which were measured to be faster still.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array
Pads = tuple[tuple[int, int], ...]

NHWC = ("NHWC", "HWIO", "NHWC")

_FEW_CHANNELS = 8  # below this the taps of a kernel's row make one matrix product


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Correlates images [N, H, W, C] with a kernel [h, w, C/groups, F] to [N, H', W', F].

    `padding` is "SAME", "VALID" or one (before, after) pair of zeros per axis. `x` and `kernel`
    have one dtype, which is also the result's. Equal to `lax.conv_general_dilated` in values,
    and in derivatives of any order.
    """
    strides, dilation = _pair(strides), _pair(dilation)
    window = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    pads: Pads = tuple((int(low), int(high)) for low, high in padding)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if strides == (1, 1) and dilation == (1, 1) and groups == 1:
        x, kernel = _vary_alike(x, kernel)
        return convolve_p.bind(x, kernel, pads=pads, precision=precision)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, None, dilation, NHWC, groups, precision=precision
    )


class Conv(nn.Module):
    """Two-dimensional convolution with the parameters of `flax.linen.Conv`.

    `kernel` is float32 [h, w, C/groups, features] and `bias` float32 [features]; an integer
    `kernel_size`, `strides` or `dilation` holds for both axes. `padding` is "SAME", "VALID" or
    one (before, after) pair per axis. Computes in `dtype`.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        shape = (*_pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y += jnp.asarray(bias, self.dtype).reshape(1, 1, 1, -1)
        return y


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def _vary_alike(*arrays: Array) -> list[Array]:
    """Inside `shard_map`, marks each array as varying over every axis that one of them varies over.

    JAX does this for its own primitives; its transpose is the `psum` of a replicated kernel's
    gradient.
    """
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(sorted(union - own)), to="varying")
        for array, own in zip(arrays, axes, strict=True)
    ]


# Each map twice: in XLA's native form, which leaves the layouts to the compiler and is what `lax`
# writes, and with the arrays turned round by hand, so that the convolution itself is canonical.


def _convolve(x, kernel, *, pads, precision, layout=NHWC):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=layout, precision=precision
    )


def _input_gradient(dy, kernel, *, pads, precision, canonical):
    kernel = jnp.flip(kernel, (0, 1))
    border = tuple(
        (window - 1 - low, window - 1 - high)
        for window, (low, high) in zip(kernel.shape[:2], pads, strict=True)
    )
    if canonical:
        return _convolve(dy, kernel.swapaxes(2, 3), pads=border, precision=precision)
    layout = ("NHWC", "HWOI", "NHWC")
    return _convolve(dy, kernel, pads=border, precision=precision, layout=layout)


def _kernel_gradient(x, dy, *, pads, precision):
    # The sum over examples and positions is a convolution with examples in the place of channels.
    layout = ("CHWN", "IHWO", "HWNC")
    return _convolve(x, dy, pads=pads, precision=precision, layout=layout)


def _kernel_gradient_by_taps(x, dy, *, pads, precision):
    """One matrix product per tap of the kernel: images shifted by the tap, times `dy`.

    Against a canonical convolution, which has to transpose both operands, it is 1.0 to 2.3 times
    faster (64 examples, 2 CPU cores: 18 ms, not 38, at 14x14x64 -> 128; 30, not 49, at 7x7x256 ->
    256). With few channels a product is too narrow, so there the taps of a row are put side by side
    as channels (32 ms, not 197, at 28x28x3 -> 128 with 5x5 taps and 128 examples).
    """
    (height, width), channels = dy.shape[1:3], x.shape[-1]
    kernel_height, kernel_width = (
        size + low + high - out + 1
        for size, (low, high), out in zip(x.shape[1:3], pads, (height, width), strict=True)
    )
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    columns = [x[:, :, j : j + width] for j in range(kernel_width)]
    if channels < _FEW_CHANNELS:
        columns = [jnp.concatenate(columns, axis=-1)]
    dy = dy.reshape(-1, dy.shape[-1])
    products = [
        lax.dot_general(
            column[:, i : i + height].reshape(-1, column.shape[-1]),
            dy,
            (((0,), (0,)), ((), ())),
            precision=precision,
        )
        for i in range(kernel_height)
        for column in columns
    ]
    return jnp.stack(products).reshape(kernel_height, kernel_width, channels, -1)


def _make_bilinear_map(
    name: str, native: Callable, cpu: Callable, folds: tuple[tuple[int, int], tuple[int, int]]
) -> Primitive:
    """Makes a primitive of two arrays from its lowerings.

    `folds` says, per operand, which of its axes passes to which axis of the result untouched:
    a mapped axis is folded into it under `vmap`.
    """
    primitive = Primitive(name)

    @primitive.def_impl
    def run(*operands, **params):
        return jax.jit(functools.partial(primitive.bind, **params))(*operands)

    @primitive.def_abstract_eval
    def infer(*avals, **params):
        jaxpr = jax.make_jaxpr(functools.partial(native, **params))(*avals)
        return jaxpr.out_avals[0]

    def one_by_one(params):
        return lambda *stacks: lax.map(lambda pair: primitive.bind(*pair, **params), stacks)

    def batch(operands, axes, **params):
        if None not in axes:
            # XLA's grouped convolution, which XLA:CPU runs slower than one after the other.
            operands = [jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
            together = jax.vmap(functools.partial(native, **params))
            return lax.platform_dependent(*operands, cpu=one_by_one(params), default=together), 0
        mapped = 0 if axes[1] is None else 1
        into, out = folds[mapped]
        x = jnp.moveaxis(operands[mapped], axes[mapped], into)
        count, size = x.shape[into : into + 2]
        x = x.reshape(*x.shape[:into], count * size, *x.shape[into + 2 :])
        operands = (x, operands[1]) if mapped == 0 else (operands[0], x)
        y = primitive.bind(*operands, **params)
        return y.reshape(*y.shape[:out], count, size, *y.shape[out + 1 :]), out

    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(native, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


convolve_p = _make_bilinear_map("convolve", _convolve, _convolve, folds=((0, 0), (3, 3)))
input_gradient_p = _make_bilinear_map(
    "convolve_input_gradient",
    native=functools.partial(_input_gradient, canonical=False),
    cpu=functools.partial(_input_gradient, canonical=True),
    folds=((0, 0), (2, 3)),
)
kernel_gradient_p = _make_bilinear_map(
    "convolve_kernel_gradient",
    native=_kernel_gradient,
    cpu=_kernel_gradient_by_taps,
    folds=((3, 2), (3, 3)),
)

ad.defbilinear(
    convolve_p,
    lambda dy, x, kernel, **params: input_gradient_p.bind(dy, kernel, **params),
    lambda dy, x, kernel, **params: kernel_gradient_p.bind(x, dy, **params),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, dy, kernel, **params: convolve_p.bind(dx, kernel, **params),
    lambda dx, dy, kernel, **params: kernel_gradient_p.bind(dx, dy, **params),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda dkernel, x, dy, **params: input_gradient_p.bind(dy, dkernel, **params),
    lambda dkernel, x, dy, **params: convolve_p.bind(x, dkernel, **params),
)
