"""BatchNorm folded into the convolution or dense layer before it, for inference."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Jaxpr, Primitive, Var
from jax.interpreters import batching

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm, Conv, ConvTranspose, DepthwiseConv
from flaxcnn.layers.channels import broadcast_channels

Path = tuple[str, ...]  # of a module among the variables

_LAYERS = (Conv, ConvTranspose, DepthwiseConv, nn.Conv, nn.ConvTranspose, nn.Dense)
_NORMS = (BatchNorm, nn.BatchNorm)


def fold_batch_norm(
    model: nn.Module, variables: Mapping[str, Any], input_shape: Sequence[int] = (224, 224, 3)
) -> tuple[nn.Module, dict[str, Any]]:
    """Folds BatchNorm into the layer before it: the same outputs from fewer operations.

    Any Linen module, called `apply(variables, images, train=False)`. A BatchNorm is folded if its
    input is the output of a convolution or dense layer, in float32, that nothing else reads, and
    each of the two is called once. Others stay, such as those before a convolution (He et al. 2016,
    Huang et al. 2016), and so does everything in a network that computes in another type.

    Returns the model without what was folded, which is for inference only, and its variables, with
    the paths of before: `kernel` multiplied by the BatchNorm's factor, `bias` [features] changed or
    new, and nothing of the BatchNorm. Outputs differ by float32's rounding.

    `input_shape` (height, width, channels) matters for networks that need their own size by more
    than a convolution's channels or a dense layer's inputs; nothing is computed on images.
    Raises UserError if the network cannot take such images.
    """
    flat: dict[str, Any] = {key: dict(flatten_dict(tree)) for key, tree in variables.items()}
    params, statistics = flat.get("params", {}), flat.get("batch_stats", {})
    norms, biased = set(), set()
    for norm, (layer, epsilon) in _find_pairs(model, variables, input_shape).items():
        mean, kernel = statistics[*norm, "mean"], params[*layer, "kernel"]
        if mean.shape != kernel.shape[-1:] or kernel.dtype != jnp.float32:
            continue  # a stack of layers, as `nn.scan` makes
        mean, variance = np.float64(mean), np.float64(statistics.pop((*norm, "var")))
        factor = np.float64(params.pop((*norm, "scale"), 1.0)) / np.sqrt(variance + epsilon)
        shift = np.float64(params.pop((*norm, "bias"), 0.0))
        if (*layer, "bias") not in params:
            biased.add(layer)
        before = np.float64(params.get((*layer, "bias"), 0.0))
        params[*layer, "kernel"] = jnp.asarray(np.asarray(kernel) * factor, jnp.float32)
        params[*layer, "bias"] = jnp.asarray((before - mean) * factor + shift, jnp.float32)
        del statistics[*norm, "mean"]
        norms.add(norm)
    if not norms:
        return model, dict(variables)
    folded = Folded(model, frozenset(norms), frozenset(biased))
    return folded, {key: unflatten_dict(tree) for key, tree in flat.items() if tree}


class Folded(nn.Module):
    """A network that skips each BatchNorm in `norms`, and adds a bias after the layers `biased`.

    Its variables are those of `fold_batch_norm`, under the network's own paths.
    """

    network: nn.Module
    norms: frozenset[Path]
    biased: frozenset[Path]

    def setup(self) -> None:
        """Leaves the network's variables where they were."""
        nn.share_scope(self, self.network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the network's, with train=False. Raises UserError in training and in `init`."""
        if kwargs.get("train"):
            raise UserError("a network whose BatchNorm is folded cannot be trained: train=False")
        if self.is_initializing():
            raise UserError("a folded network has the variables that fold_batch_norm returned")
        with nn.intercept_methods(self._intercept):
            return self.network(*args, **kwargs)

    @nn.nowrap
    def _intercept(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, _LAYERS + _NORMS):
            return call(*args, **kwargs)
        if module.path in self.norms:
            return args[0]
        y = call(*args, **kwargs)
        if module.path in self.biased:
            y = y + broadcast_channels(module.get_variable("params", "bias"), y)
        return y


def _make_mark(name: str) -> Primitive:
    """The identity with a module's path, found again in the jaxpr; it is traced and never run."""
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda x, **_: x)
    batching.defvectorized(primitive)
    return primitive


_layer_p = _make_mark("layer")  # of its output; `foldable`
_norm_p = _make_mark("norm")  # of its input; `epsilon`, None if it is not foldable


def _find_pairs(
    model: nn.Module, variables: Any, input_shape: Sequence[int]
) -> dict[Path, tuple[Path, float]]:
    """The path of each BatchNorm that can be folded -> the path of its layer, and epsilon."""

    def forward(variables: Any, images: Any) -> Any:
        with nn.intercept_methods(_mark):
            return model.apply(variables, images, train=False)

    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    try:
        program = jax.make_jaxpr(forward)(variables, images)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        sides, reason = "x".join(map(str, input_shape)), str(error).strip().split("\n")[0]
        message = f"input_shape: the network cannot take {sides} images: {reason}"
        raise UserError(message) from error
    calls, pairs = Counter(), {}
    for jaxpr in _iterate_jaxprs(program.jaxpr):
        uses = Counter(v for v in jaxpr.outvars if isinstance(v, Var))
        uses.update(v for e in jaxpr.eqns for v in e.invars if isinstance(v, Var))
        layers = {}
        for equation in jaxpr.eqns:
            known = equation.params
            if equation.primitive is _layer_p:
                calls[known["path"]] += 1
                if known["foldable"]:
                    layers[equation.outvars[0]] = known["path"]
            elif equation.primitive is _norm_p:
                calls[known["path"]] += 1
                x: Any = equation.invars[0]
                if known["epsilon"] is not None and x in layers and uses[x] == 1:
                    pairs[known["path"]] = layers[x], known["epsilon"]
    return {norm: pair for norm, pair in pairs.items() if calls[norm] == calls[pair[0]] == 1}


def _mark(
    call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    module: Any = context.module
    if context.method_name != "__call__" or not args:
        return call(*args, **kwargs)
    if isinstance(module, _LAYERS):
        x = _fit(args[0], module)
        y = call(x, *args[1:], **kwargs)
        last = not getattr(module, "transpose_kernel", False)  # features are the kernel's last axis
        foldable = last and x.dtype == y.dtype == jnp.float32
        return _layer_p.bind(y, path=module.path, foldable=foldable)
    if isinstance(module, _NORMS) and module.has_variable("batch_stats", "mean"):
        x, *flag = args
        running = any([module.use_running_average, kwargs.get("use_running_average"), *flag])
        foldable = (
            running
            and module.axis in (-1, x.ndim - 1)
            and x.dtype == jnp.float32 == (module.dtype or jnp.float32)
        )
        x = _norm_p.bind(x, path=module.path, epsilon=module.epsilon if foldable else None)
        return call(x, *flag, **kwargs)
    return call(*args, **kwargs)


def _fit(x: Any, layer: Any) -> Any:
    """`x`, or zeros with the channels of the layer's kernel: of images of another size."""
    if not isinstance(layer, (Conv, nn.Conv, nn.Dense)) or not layer.has_variable(
        "params", "kernel"
    ):
        return x
    groups = getattr(layer, "groups", getattr(layer, "feature_group_count", 1))
    channels = layer.get_variable("params", "kernel").shape[-2] * groups
    return x if x.shape[-1] == channels else jnp.zeros((*x.shape[:-1], channels), x.dtype)


def _iterate_jaxprs(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """A jaxpr and those that its equations call, at any depth."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, Jaxpr):
                yield from _iterate_jaxprs(inner)
