"""Identities that tell XLA:CPU what to compute apart from what; elsewhere they are nothing."""

import jax
from jax import lax
from jax.experimental import jet
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxcnn.layers.plain import is_plain

Array = jax.Array


def keep_apart(x: Array) -> Array:
    """The identity, over which XLA:CPU does not simplify two steps to one."""
    return x if is_plain() else keep_apart_p.bind(x)


def compute_gradient_once(x: Array) -> Array:
    """The identity; on CPU its cotangent is computed as a whole before anything uses it.

    XLA:CPU fuses what is used more than once into each of its uses. The gradient of the maps that
    all layers of a dense block read is a sum over these layers, and would be computed anew, layer
    by layer, wherever a part of it is needed (docs/adr/0007).
    """
    return x if is_plain() else gradient_once_p.bind(x)


def _call(x: Array) -> Array:
    # A function that XLA may not inline; of one that only returned its argument JAX made nothing.
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lax.optimization_barrier)(x)


def _make_identity(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    batching.defvectorized(primitive)
    jet.deflinear(primitive)
    mlir.register_lowering(primitive, lambda context, x: [x])
    return primitive


keep_apart_p = _make_identity("keep_apart")
gradient_once_p = _make_identity("gradient_once")
once_p = _make_identity("once")
ad.deflinear2(keep_apart_p, lambda cotangent, x: [keep_apart_p.bind(cotangent)])
ad.deflinear2(gradient_once_p, lambda cotangent, x: [once_p.bind(cotangent)])
ad.deflinear2(once_p, lambda cotangent, x: [gradient_once_p.bind(cotangent)])
for _primitive, _function in ((keep_apart_p, lax.optimization_barrier), (once_p, _call)):
    _lowering = mlir.lower_fun(_function, multiple_results=False)
    mlir.register_lowering(_primitive, _lowering, platform="cpu")
