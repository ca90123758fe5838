"""The three bilinear maps of a convolution as JAX primitives, closed under transposition.

    convolve(images, kernel) -> outputs
    input_gradient(outputs, kernel) -> images
    kernel_gradient(images, outputs) -> kernel

Each map's transposes are the other two, hence derivatives of every order stay within the three, and
each has a lowering of its own: on GPU and TPU what `lax` itself would write, on CPU the functions
of `conv_cpu.py` (docs/adr/0005).
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, auto_axes

from flaxcnn.compat import like_operand, vary_alike
from flaxcnn.errors import UserError
from flaxcnn.layers import conv_cpu, conv_spec
from flaxcnn.layers.conv_spec import ConvSpec
from flaxcnn.layers.plain import is_plain

Array = jax.Array


def bind_convolve(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Binds the first map: images [N, *input, C], kernel [*kernel, C/groups, F] -> outputs."""
    if is_plain():
        return conv_spec.convolve(x, kernel, spec)
    x, kernel = vary_alike(x, kernel)
    return convolve_p.bind(x, kernel, spec=spec)


def bind_input_gradient(dy: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Binds the second map: outputs [N, *output, F], kernel -> images [N, *input, C]."""
    if is_plain():
        return conv_spec.transposed_convolve(dy, kernel, spec)
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
    keeps_batch = folds[0] == (0, 0)

    def result_spec(first):
        """The first operand's PartitionSpec without channels; a sum over the batch has none."""
        return (*first[:-1], None) if keeps_batch else (None,) * len(first)

    @primitive.def_impl
    def run(*operands, **params):
        return jax.jit(functools.partial(primitive.bind, **params))(*operands)

    @primitive.def_abstract_eval
    def infer(*avals, **params):
        operands = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        (out,) = jax.make_jaxpr(functools.partial(native, **params))(*operands).out_avals
        # Inside shard_map the result varies over the axes that the operands vary over.
        out, mesh = like_operand(out, avals[0]), _explicit_mesh(*avals)
        if mesh is None:
            return out
        if keeps_batch:
            _check_sharding(name, out.shape, *avals)
        spec = PartitionSpec(*result_spec(avals[0].sharding.spec))
        return out.update(sharding=NamedSharding(mesh, spec))

    def lower(function):
        def run(first, second, **params):
            out = jax.eval_shape(functools.partial(primitive.bind, **params), first, second)
            if 0 in (*first.shape, *second.shape, *out.shape):  # nothing to add up
                return jnp.zeros_like(out)
            spec = result_spec(jax.typeof(first).sharding.spec)
            return in_auto_axes(functools.partial(function, **params), spec)(first, second)

        return mlir.lower_fun(run, multiple_results=False)

    mlir.register_lowering(primitive, lower(native))
    mlir.register_lowering(primitive, lower(cpu), platform="cpu")
    batching.primitive_batchers[primitive] = _make_batcher(primitive, native, folds, result_spec)
    jet.jet_rules[primitive] = functools.partial(_multiply_series, primitive)
    return primitive


def _make_batcher(
    primitive: Primitive, native: Callable, folds: tuple, result_spec: Callable
) -> Callable:
    """Makes the rule of `vmap`: a mapped axis is folded into the one that passes untouched."""

    def batch(operands, axes, **params):
        mapped = 0 if axes[1] is None else 1
        into, out = folds[mapped]
        divided = jax.typeof(operands[mapped]).sharding.spec[axes[mapped]] is not None
        if None not in axes or (into < 0 and (divided or params["spec"].groups > 1)):
            bind, other = (functools.partial(f, **params) for f in (primitive.bind, native))
            return _map_all(bind, other, operands, axes, result_spec)
        into %= operands[mapped].ndim - 1
        x = jnp.moveaxis(operands[mapped], axes[mapped], into)
        # An axis that is divided among devices comes first: the other one is whole on each of them.
        last = jax.typeof(x).sharding.spec[into + 1] is not None
        if last:
            x = x.swapaxes(into, into + 1)
        pair = x.shape[into : into + 2]
        x = x.reshape(*x.shape[:into], math.prod(pair), *x.shape[into + 2 :])
        y = primitive.bind(*((x, operands[1]) if mapped == 0 else (operands[0], x)), **params)
        out %= y.ndim
        return y.reshape(*y.shape[:out], *pair, *y.shape[out + 1 :]), out + last

    return batch


def _map_all(
    bind: Callable, native: Callable, operands: Any, axes: Any, result_spec: Callable
) -> tuple[Array, int]:
    """Maps what cannot be folded: on CPU one after the other, elsewhere `native` under `vmap`."""
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
            return bind(*chosen)

        count = next(x.shape[0] for x, axis in zip(stacks, in_axes, strict=True) if axis == 0)
        if count == 0:
            return jnp.zeros_like(jax.eval_shape(together, *stacks))
        return lax.map(one, jnp.arange(count))

    # XLA's grouped convolution, which XLA:CPU runs slower than one after the other.
    together = jax.vmap(native, in_axes)
    run = functools.partial(lax.platform_dependent, cpu=one_by_one, default=together)
    specs = [jax.typeof(x).sharding.spec for x in stacks]
    mapped = next(spec[0] for spec, axis in zip(specs, in_axes, strict=True) if axis == 0)
    single = specs[0] if in_axes[0] is None else specs[0][1:]
    return in_auto_axes(run, (mapped, *result_spec(single)))(*stacks), 0


def in_auto_axes(function: Callable, spec: tuple) -> Callable:
    """Leaves it to XLA how to divide a function among devices, where axes are Explicit outside.

    `spec` is the PartitionSpec of its result.
    """

    def run(*operands) -> Any:
        mesh = _explicit_mesh(*map(jax.typeof, operands))
        if mesh is None:
            return function(*operands)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return auto_axes(function, axes=mesh.explicit_axes, out_sharding=sharding)(*operands)

    return run


def _explicit_mesh(*avals: Any) -> AbstractMesh | None:
    """The mesh of the first array whose type names axes of one; None without Explicit axes."""
    meshes = (aval.sharding.mesh for aval in avals)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _check_sharding(name: str, shape: tuple[int, ...], images: Any, kernel: Any) -> None:
    """Channels and kernels that are divided among devices would make partial sums."""
    spec, mesh = images.sharding.spec, images.sharding.mesh
    if spec[-1] is not None or any(axis is not None for axis in kernel.sharding.spec):
        raise UserError(
            f"{name}: channels of {images.str_short()} or the kernel {kernel.str_short()} are "
            "sharded over Explicit mesh axes: replicate them with jax.sharding.reshard"
        )
    for size, names in zip(shape, spec, strict=True):
        names = names if isinstance(names, tuple) else () if names is None else (names,)
        if size % math.prod(mesh.shape[axis] for axis in names):
            raise UserError(
                f"{name}: {size} rows or columns of {shape} cannot be sharded as {spec}"
            )


def _multiply_series(primitive: Primitive, operands: Any, series: Any, **params: Any) -> Any:
    """The rule of `jax.experimental.jet`: the Taylor coefficients of a product."""
    first, second = ([x, *terms] for x, terms in zip(operands, series, strict=True))
    bind = functools.partial(primitive.bind, **params)
    sums = [
        functools.reduce(operator.add, map(bind, first[: n + 1], reversed(second[: n + 1])))
        for n in range(len(first))
    ]
    return sums[0], sums[1:]


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
