"""What the networks of the zoo share: their arguments, their stages, what they return."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm, Dropout, FrozenBatchNorm, avg_pool, global_avg_pool

Array = jax.Array


class Network(nn.Module, kw_only=True):
    """The arguments of every network.

    Attributes:
      num_classes: logits per image; 0 for pooled features, float32 [N, C], instead.
      dtype: of the computation. Parameters, statistics and logits stay float32.
      axis_name: the `pmap` axis over which batch statistics are global.
      features_only: to return the outputs of stages, a tuple of maps, instead of logits.
      out_indices: which stages, of those `feature_info` lists; by default all. Nothing after the
        last of them is computed or has parameters.
      remat: to keep only what goes in and out of blocks for the backward pass, which computes the
        rest again: less memory, about a third more time (Chen et al. 2016, arXiv:1604.06174).
      frozen_norm: BatchNorm by running averages, of which nothing is trained (`FrozenBatchNorm`).
      window: 0, or the side of windows of the last maps that are classified one beside the other,
        [N, H', W', num_classes], with the weights of a classifier of images whose last maps are as
        large: a sliding window over a larger image, computed once.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None
    remat: bool = False
    frozen_norm: bool = False
    window: int = 0


class Outputs(NamedTuple):
    """What a network with auxiliary classifiers returns in training.

    `logits` and each of `auxiliary`, in the order of depth, are float32 [N, num_classes].
    """

    logits: Array
    auxiliary: tuple[Array, ...]


class Feature(NamedTuple):
    """The output of a stage: its channels, and how many pixels of the input a step in it is."""

    name: str
    channels: int
    stride: int


def make_norm(
    network: Any, train: bool, *, momentum: float = 0.9, epsilon: float = 1e-5, **arguments: Any
) -> Callable[..., Any]:
    """BatchNorm in the mode, `dtype` and `axis_name` of a network, with `arguments` of its own."""
    if getattr(network, "frozen_norm", False):
        return functools.partial(FrozenBatchNorm, epsilon, dtype=network.dtype, **arguments)
    return functools.partial(
        BatchNorm,
        not train,
        momentum,
        epsilon,
        dtype=network.dtype,
        axis_name=network.axis_name,
        **arguments,
    )


def run_stages(
    network: Network, x: Array, stages: Mapping[str, Callable[[Array], Array]]
) -> tuple[Array, ...]:
    """Applies stages in turn; returns the outputs of all, or of `network.out_indices`.

    Raises UserError for an index that no stage has, and for indices without `features_only`.
    """
    wanted = tuple(range(len(stages)))
    if network.out_indices is not None:
        if not network.features_only:
            raise UserError("out_indices chooses among features: it needs features_only=True")
        wanted = tuple(network.out_indices)
        if not wanted:
            raise UserError("out_indices is empty: it must name at least one stage")
        for index in wanted:
            if not -len(stages) <= index < len(stages):
                raise UserError(
                    f"out_indices has {index}, and the network {len(stages)} stages: "
                    + ", ".join(stages)
                )
        wanted = tuple(index % len(stages) for index in wanted)
    outputs = {}
    for name, stage in list(stages.items())[: max(wanted) + 1]:
        outputs[name] = x = stage(x)
    network.sow("intermediates", "stages", outputs)
    return tuple(list(outputs.values())[index] for index in wanted)


def run_block(
    network: Any, block: nn.Module | Callable[..., Any], *maps: Array, **arguments: Any
) -> Any:
    """Applies a block to maps; with `network.remat`, the backward pass computes it again.

    A block is a module that uses no other, or a function that makes all the modules it uses, with
    `arguments` that are no arrays. Parameters, statistics and noise are the same either way.
    """
    if not network.remat or network.is_initializing():
        return block(*maps, **arguments)
    # Of a module its own variables are passed through `nn.remat`, of a function the network's.
    if isinstance(block, nn.Module):
        return nn.remat(lambda module, *maps: module(*maps, **arguments))(block, *maps)
    return nn.remat(lambda _, *maps: block(*maps, **arguments))(network, *maps)


def classify(
    network: Network, maps: Array, *, train: bool, kernel_init: Initializer, dropout: float = 0.0
) -> Array:
    """The head that most networks have: averages of the maps, dropout, a dense layer in float32.

    Maps [N, H, W, C] to logits [N, num_classes], or to the averages [N, C] if there are no classes;
    of each window, if there are windows.
    """
    x = average(network, maps)
    if network.num_classes:
        x = Dropout(dropout, network.axis_name, name="dropout")(x, train=train)
        x = nn.Dense(network.num_classes, kernel_init=kernel_init, name="classifier")(x)
    return x.astype(jnp.float32)


def average(network: Network, maps: Array) -> Array:
    """The averages of maps [N, H, W, C], [N, C], or of each window, [N, H', W', C]."""
    if not network.window:
        return global_avg_pool(maps)
    check_window(network, maps)
    return avg_pool(maps, (network.window,) * 2, (1, 1))


def check_window(network: Network, maps: Array) -> None:
    """Raises UserError for windows larger than the maps [N, H, W, C]."""
    height, width = maps.shape[1:3]
    if min(height, width) < network.window:
        raise UserError(
            f"window is {network.window}, and the last maps of {type(network).__name__} are "
            f"{height}x{width}"
        )


def feature_info(network: nn.Module, input_shape: tuple[int, int, int]) -> list[Feature]:
    """Lists the stages whose outputs `features_only` returns; traces, and computes nothing.

    `input_shape` is (height, width, channels) of images that the network takes. Raises UserError
    for a network without stages, such as an MLP.
    """
    if not isinstance(network, Network):
        raise UserError(f"{type(network).__name__} has no stages to list")
    height, width, channels = input_shape
    model = network.clone(features_only=True)
    sides = []
    for extra in (0, _EXTRA):
        images = jax.ShapeDtypeStruct((1, height + extra, width + extra, channels), jnp.float32)
        sides.append(_trace_stages(model, images))
    found = [
        Feature(name, shape[-1], _EXTRA // (larger[1] - shape[1]))
        for (name, shape), (_, larger) in zip(*sides, strict=True)
    ]
    if network.out_indices is None:
        return found
    return [found[index % len(found)] for index in network.out_indices]


_EXTRA = 128  # pixels: a multiple of every network's stride, so that sides grow by 128 / stride


def _trace_stages(model: Network, images: jax.ShapeDtypeStruct) -> list[tuple[str, tuple]]:
    stages = {}

    def forward(images):
        variables: Any = model.init(jax.random.key(0), images, train=False, mutable=True)
        stages.update({k: x.shape for k, x in variables["intermediates"]["stages"][0].items()})

    jax.eval_shape(forward, images)
    return list(stages.items())
