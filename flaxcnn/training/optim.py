"""Update rules by name: clipping, weight decay of kernels only, the optax optimizer, lookahead.

Clipping comes first, in the order value, global norm, adaptive; then the optimizer, which weighs
in the decay. A gradient is thus clipped before weight decay is added to it, as in PyTorch. Last
come the rates of single parameters. Lookahead moves weights after all that, and is apart from it.
"""

import dataclasses
import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm
from flaxcnn.training.config import OptimizerConfig


def kernel_mask(params: Any) -> Any:
    """A tree of bools: True where a parameter is called `kernel`, so for no bias and no norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) == "kernel", params)


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)


def _muon_matrices(params: Any) -> Any:
    """Which axes of a kernel are inputs and which is outputs; None gives a parameter to Adam.

    A convolution kernel [h, w, in, out] becomes the matrix of every output's weights, as in
    airbench94_muon (Jordan 2024), a dense kernel [in, out] is one.
    """

    def to_matrix(path, param):
        if _name(path) != "kernel" or param.ndim < 2:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

    return jax.tree_util.tree_map_with_path(to_matrix, params)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """An optax optimizer and the arguments that make it what its name says.

    `decay_mask` names its argument for where weight decay applies; "" means that it has no decay
    of its own, and decay is added to the gradient (L2, Krogh 1992).
    """

    make: Callable[..., optax.GradientTransformation]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    decay_mask: str = ""


_RULES = {
    "sgd": _Rule(optax.sgd),
    "momentum": _Rule(optax.sgd, {"momentum": 0.9}),
    "nesterov": _Rule(optax.sgd, {"momentum": 0.9, "nesterov": True}),
    # Hinton 2012 and PyTorch: the root, then epsilon.
    "rmsprop": _Rule(optax.rmsprop, {"eps_in_sqrt": False}),
    # TensorFlow 1, with the constants of MnasNet and EfficientNet (Tan 2019).
    "rmsprop_tf": _Rule(
        optax.rmsprop, {"eps": 1e-3, "eps_in_sqrt": True, "initial_scale": 1.0, "momentum": 0.9}
    ),
    "adagrad": _Rule(optax.adagrad),
    "adam": _Rule(optax.adam),
    "adamw": _Rule(optax.adamw, decay_mask="mask"),
    "lamb": _Rule(optax.lamb, decay_mask="mask"),
    # You 2017 scales whole layers; biases and norms keep the plain rate, as is usual.
    "lars": _Rule(optax.lars, {"trust_ratio_mask": kernel_mask}, decay_mask="weight_decay_mask"),
    "lion": _Rule(optax.lion, decay_mask="mask"),
    "muon": _Rule(
        contrib.muon,
        {"muon_weight_dimension_numbers": _muon_matrices},
        decay_mask="weight_decay_mask",
    ),
}


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, layers: Mapping[str, int] | None = None
) -> optax.GradientTransformation:
    """The update rule of `config`, with learning rates from `schedule`.

    Weight decay applies to kernels only. adamw, lamb, lion and muon decay the weights themselves
    by learning rate x `weight_decay` (Loshchilov 2019), lars within its trust ratio (You 2017); in
    all others it is added to the gradient before momentum. `rates` multiplies what a step changes
    of the parameters whose path, such as group1/bn1/bias, a pattern matches (* is anything, /
    too); 0 keeps them as they are, and where several patterns match, their factors multiply. So
    does `layer_decay` to the power of how many layers a parameter's is before the last (Bao 2021,
    BEiT, section 3.3, of blocks, as timm does); `layers` has their numbers, see `number_layers`.
    `update` needs the parameters.

    Raises:
        UserError: an unknown name or argument, or a setting out of range; from `init`, a pattern
            of `rates` that matches no parameter.
    """
    _check_fields(config)
    rule = _RULES[config.name]
    arguments = rule.arguments | _check_kwargs(config, rule)
    chain = []
    if config.clip.value:
        chain.append(optax.clip(config.clip.value))
    if config.clip.norm:
        chain.append(optax.clip_by_global_norm(config.clip.norm))
    if config.clip.adaptive:
        chain.append(optax.adaptive_grad_clip(config.clip.adaptive))
    if rule.decay_mask:
        # Also when 0: optax has defaults of its own.
        arguments |= {"weight_decay": config.weight_decay, rule.decay_mask: kernel_mask}
    elif config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=kernel_mask))
    chain.append(rule.make(schedule, **arguments))
    if config.rates or config.layer_decay != 1:
        chain.append(_scale_by_path(config.rates.to_dict(), config.layer_decay, layers or {}))
    return optax.chain(*chain)


def _scale_by_path(
    rates: Mapping[str, float], decay: float, layers: Mapping[str, int]
) -> optax.GradientTransformation:
    """Multiplies each update by the factors of all patterns that match its parameter's path.

    And by that of its layer, `decay` to the power of how many come after it.
    """
    last = max(layers.values(), default=0)

    def join(path: jax.tree_util.KeyPath) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    def init(params: Any) -> optax.EmptyState:
        names = [join(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in rates:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"optimizer.rates: no trained parameter is called {pattern}; they are called "
                    f"like {', '.join(names[:4])}"
                )
        return optax.EmptyState()

    def scale(path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        name = join(path)
        matched = (rate for p, rate in rates.items() if fnmatch.fnmatchcase(name, p))
        depth = last - layers.get(name.partition("/")[0], 0)
        return update * (math.prod(matched) * decay**depth)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def number_layers(model: nn.Module, image_shape: Sequence[int]) -> dict[str, int]:
    """Numbers a network's layers, from 0 at the image: its own modules, in the order of their use.

    So a block is a layer, and one of normalisation belongs to the one before. Traces only. Of
    ResNet-50, the stem is 0, its blocks are 1 to 16, the classifier is 17, as in timm.
    """
    layers: dict[str, int] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if path and path[0] not in layers and context.method_name == "__call__":
            normalises = isinstance(context.module, BatchNorm | nn.BatchNorm) and len(path) == 1
            last = max(layers.values(), default=-1)
            layers[path[0]] = max(last, 0) if normalises else last + 1
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(note):
        shapes: Any = jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False)["params"], images
        )
    # Those without parameters, such as dropout, are no layers.
    ordered = sorted({layers[name] for name in shapes if name in layers})
    return {name: ordered.index(layers[name]) for name in shapes if name in layers}


@dataclasses.dataclass(frozen=True)
class Lookahead:
    """Weights and batch statistics go back to a slow copy after `every` steps, and at the end.

    The copy first moves towards them, and keeps the share decay^every (step / total_steps)^3 of
    where it was: nothing at the start, where it follows them. Zhang 2019, Algorithm 1, with the
    share of Jordan 2024 (arXiv:2404.00498), section 3.4. The optimizer's own state is not reset.
    """

    every: int
    decay: float
    total_steps: int

    def __call__(self, step: jax.Array, fast: Any, slow: Any) -> tuple[Any, Any]:
        """Both trees after update number `step` (int32 [], from 1), which has moved `fast`."""
        due = (step % self.every == 0) | (step == self.total_steps)
        kept = self.decay**self.every * (step / self.total_steps) ** 3
        # In this form what never changes, such as the kernel of a whitening layer, keeps its bits.
        slow = jax.tree.map(lambda s, f: jnp.where(due, s + (1 - kept) * (f - s), s), slow, fast)
        return jax.tree.map(lambda s, f: jnp.where(due, s, f), slow, fast), slow


def make_lookahead(config: OptimizerConfig, total_steps: int) -> Lookahead | None:
    """The lookahead of `config` for a run of `total_steps`, if it has one.

    Raises UserError if `lookahead.decay` is out of range.
    """
    if not 0.0 <= config.lookahead.decay <= 1.0:
        raise UserError(f"optimizer.lookahead.decay={config.lookahead.decay}: must be in 0..1")
    if not config.lookahead.every:
        return None
    return Lookahead(config.lookahead.every, config.lookahead.decay, total_steps)


def _check_fields(config: OptimizerConfig) -> None:
    """Raises UserError for an unknown name and for a setting out of range."""
    if config.name not in _RULES:
        raise UserError(f"optimizer.name={config.name!r}: must be one of {', '.join(_RULES)}")
    clip = {f"clip.{name}": value for name, value in vars(config.clip).items()}
    for field, value in ({"weight_decay": config.weight_decay} | clip).items():
        if not value >= 0.0:
            raise UserError(f"optimizer.{field}={value}: must not be negative")
    if not 0.0 < config.layer_decay <= 1.0:
        raise UserError(f"optimizer.layer_decay={config.layer_decay}: must be in (0, 1]")
    for pattern, rate in config.rates.to_dict().items():
        if type(rate) not in (int, float) or not 0.0 <= rate < math.inf:
            raise UserError(f"optimizer.rates: {pattern} must have a factor >= 0, got {rate!r}")


def list_optimizers() -> dict[str, dict[str, Any]]:
    """What `optimizer.kwargs` may set of each optimizer, with the defaults."""
    return {name: _list_kwargs(rule) for name, rule in _RULES.items()}


def _list_kwargs(rule: _Rule) -> dict[str, Any]:
    """The arguments of the optax function that no other field sets, with their defaults."""
    return {
        name: rule.arguments.get(name, parameter.default)
        for name, parameter in inspect.signature(rule.make).parameters.items()
        if name not in ("learning_rate", "weight_decay", "adam_weight_decay")
        and not name.endswith(("mask", "dimension_numbers"))
    }


def _check_kwargs(config: OptimizerConfig, rule: _Rule) -> dict[str, Any]:
    """`config.kwargs` if the optax function takes them.

    Raises:
        UserError: an unknown argument, or a value of another type than the default's.
    """
    defaults = _list_kwargs(rule)
    for name, value in config.kwargs.items():
        if name not in defaults:
            known = ", ".join(defaults)
            raise UserError(f"optimizer.kwargs: {config.name} has no {name!r}; it has {known}")
        default = defaults[name]
        kind = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool)
        ):
            wanted = type(default).__name__
            raise UserError(f"optimizer.kwargs: {name}={value!r} is no {wanted}")
    return dict(config.kwargs)
