"""The three bilinear maps of a convolution as JAX primitives, closed under transposition.

    convolve(images, kernel) -> outputs
    input_gradient(outputs, kernel) -> images
    kernel_gradient(images, outputs) -> kernel

Each map's transposes are the other two, hence derivatives of every order stay within the three, and
each has a lowering of its own: on GPU and TPU what `lax` itself would write, on CPU the functions
of `conv_cpu.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxcnn.compat import like_operand, vary_alike
from flaxcnn.layers import conv_cpu, conv_spec
from flaxcnn.layers.conv_spec import ConvSpec

Array = jax.Array


def bind_convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Binds the first map: images [N, *input, C], kernel [*kernel, C/groups, F] -> outputs."""
    x, kernel = vary_alike(x, kernel)
    return convolve_p.bind(x, kernel, spec=spec)


def bind_input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Binds the second map: outputs [N, *output, F], kernel -> images [N, *input, C]."""
    dy, kernel = vary_alike(dy, kernel)
    return input_gradient_p.bind(dy, kernel, spec=spec)


def _make_bilinear_map(
    name: str, native: Callable, cpu: Callable, folds: tuple[tuple[int, int], tuple[int, int]]
) -> Primitive:
    """Makes a primitive of two arrays from its lowerings.

    `folds` says, per operand, which of its axes passes to which axis of the result untouched:
    a mapped axis is folded into it under `vmap`. Axes of channels are counted from the end; with
    groups they do not pass untouched.
    """
    primitive = Primitive(name)

    @primitive.def_impl
    def run(*operands, **params):
        return jax.jit(functools.partial(primitive.bind, **params))(*operands)

    @primitive.def_abstract_eval
    def infer(*avals, **params):
        operands = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        (out,) = jax.make_jaxpr(functools.partial(native, **params))(*operands).out_avals
        # Inside shard_map the result varies over the axes that the operands vary over.
        return like_operand(out, avals[0])

    def map_all(operands, axes, params):
        stacks = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        in_axes = [None if axis is None else 0 for axis in axes]

        def one_by_one(*stacks):
            def one(index):
                chosen = (
                    x if axis is None else lax.dynamic_index_in_dim(x, index, keepdims=False)
                    for x, axis in zip(stacks, in_axes, strict=True)
                )
                return primitive.bind(*chosen, **params)

            count = next(x.shape[0] for x, axis in zip(stacks, in_axes, strict=True) if axis == 0)
            return lax.map(one, jnp.arange(count))

        # XLA's grouped convolution, which XLA:CPU runs slower than one after the other.
        together = jax.vmap(functools.partial(native, **params), in_axes)
        return lax.platform_dependent(*stacks, cpu=one_by_one, default=together), 0

    def batch(operands, axes, **params):
        mapped = 0 if axes[1] is None else 1
        into, out = folds[mapped]
        if None not in axes or (into < 0 and params["spec"].groups > 1):
            return map_all(operands, axes, params)
        into %= operands[mapped].ndim - 1
        x = jnp.moveaxis(operands[mapped], axes[mapped], into)
        count, size = x.shape[into : into + 2]
        x = x.reshape(*x.shape[:into], count * size, *x.shape[into + 2 :])
        y = primitive.bind(*((x, operands[1]) if mapped == 0 else (operands[0], x)), **params)
        out %= y.ndim
        return y.reshape(*y.shape[:out], count, size, *y.shape[out + 1 :]), out

    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(native, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


convolve_p = _make_bilinear_map(
    "convolve", conv_spec.convolve, conv_cpu.convolve, folds=((0, 0), (-1, -1))
)
input_gradient_p = _make_bilinear_map(
    "convolve_input_gradient",
    conv_spec.input_gradient,
    conv_cpu.input_gradient,
    folds=((0, 0), (-2, -1)),
)
kernel_gradient_p = _make_bilinear_map(
    "convolve_kernel_gradient",
    conv_spec.kernel_gradient,
    conv_cpu.kernel_gradient,
    folds=((-1, -2), (-1, -1)),
)

ad.defbilinear(
    convolve_p,
    lambda dy, x, kernel, spec: input_gradient_p.bind(dy, kernel, spec=spec),
    lambda dy, x, kernel, spec: kernel_gradient_p.bind(x, dy, spec=spec),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, dy, kernel, spec: convolve_p.bind(dx, kernel, spec=spec),
    lambda dx, dy, kernel, spec: kernel_gradient_p.bind(dx, dy, spec=spec),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda dkernel, x, dy, spec: input_gradient_p.bind(dy, dkernel, spec=spec),
    lambda dkernel, x, dy, spec: convolve_p.bind(x, dkernel, spec=spec),
)
