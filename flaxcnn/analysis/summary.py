"""What a network is made of: its layers, and what each takes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxcnn.analysis.layers import Call, list_calls, pause_cycle_search, trace
from flaxcnn.analysis.memory_model import abstract_bytes, measure_activations


@dataclass(frozen=True)
class Layer:
    """One layer, or the values that a module of others holds itself.

    Attributes:
      path: of its variables, as "stage1_block1/conv1"; of a pool, of the module that pools.
      type: the class of the module, or "max_pool".
      output_shape: for one image.
      params: trainable values; `statistics` those that are not, as BatchNorm's. A layer that is
        called again has none.
      multiply_adds: for one image, forward; `backward` those of its gradients.
      receptive_field: pixels per axis that one value of the output depends on, of the last maps
        before it where the output has no place in the image; None if it depends on no image. The
        border counts as image, gates and other paths that see the whole image do not.
      stride: pixels of the image from value to value, as the field; 1/2 after upsampling.
      everywhere: whether each value depends on the whole image besides (`ReceptiveField`).
      located: whether each value has a place in the image, as in maps.
      training_only: of an auxiliary classifier, whose multiply-adds are in the training totals.
    """

    path: str
    type: str
    output_shape: tuple[int, ...]
    params: int
    statistics: int
    multiply_adds: int
    backward: int
    receptive_field: tuple[int, ...] | None
    stride: tuple[float, ...] | None
    everywhere: bool
    located: bool
    training_only: bool


@dataclass(frozen=True)
class Summary:
    """The layers of a network in order of computation, and totals.

    Attributes:
      network: the class, or the name under which it was asked for.
      input_shape: (height, width, channels), or any number of sizes and the channels.
      batch: the number of images that the bytes of activations are for.
      layers: those that have parameters or compute.
      params, statistics: trainable values, and those that are not.
      weight_bytes: of both.
      multiply_adds: of convolutions and dense layers for one image, forward in inference;
        `training_multiply_adds` those of a training step, forward and `backward_multiply_adds`:
        gradients of all parameters, and of all that depends on parameters.
      flops: two for each multiply-add, forward; `training_flops` those of a training step.
      activation_bytes: the most that is alive at a time in inference, images included, for the
        batch; `training_activation_bytes` what the forward pass keeps for the backward pass. A
        model of what XLA does: convolutions, products, pools and sums of several maps are written,
        other element-wise operations computed where they are used.
      receptive_field: of the last maps before a global pool or dense layer, in pixels per axis.
    """

    network: str
    input_shape: tuple[int, ...]
    batch: int
    layers: tuple[Layer, ...]
    params: int
    statistics: int
    weight_bytes: int
    multiply_adds: int
    training_multiply_adds: int
    backward_multiply_adds: int
    flops: int
    training_flops: int
    activation_bytes: int
    training_activation_bytes: int
    receptive_field: tuple[int, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def summary(model: nn.Module, shape: Sequence[int], batch: int = 1, name: str = "") -> Summary:
    """Lists a network's layers and counts what they take, on images of `shape`.

    Any Linen module that takes [N, *size, C], such as (height, width, channels) or (length,
    channels), with or without `train=`. Only shapes are traced: nothing is computed, no parameter
    made. Auxiliary classifiers, which run in training only, are the last layers. What `remat`
    computes again is not counted. `name` is the network's, by default its class. Raises UserError
    if the network cannot take such images.
    """
    with pause_cycle_search():
        traced = trace(model, shape)
        calls, _ = list_calls(traced)
        alive, kept = measure_activations(traced.program)
        later = calls
        if getattr(model, "auxiliary", False):
            in_training = trace(model, shape, train=True)
            later, _ = list_calls(in_training)
            kept = measure_activations(in_training.program)[1]
    sizes = _Sizes(traced.variables)
    paths = {call.path for call in calls}
    extra = [call for call in later if call.path not in paths]
    layers = [_make_layer(call, sizes, call in extra) for call in [*calls, *extra]]
    total = sum(call.forward for call in calls)
    forward, backward = (sum(getattr(c, way) for c in later) for way in ("forward", "backward"))
    fields = [call.field for call in calls if call.field is not None]
    return Summary(
        network=name or type(model).__name__,
        input_shape=tuple(shape),
        batch=batch,
        layers=tuple(layer for layer in layers if layer is not None),
        params=sizes.params,
        statistics=sizes.statistics,
        weight_bytes=int(abstract_bytes(traced.variables)),
        multiply_adds=total,
        training_multiply_adds=forward + backward,
        backward_multiply_adds=backward,
        flops=2 * total,
        training_flops=2 * (forward + backward),
        activation_bytes=batch * int(alive),
        training_activation_bytes=batch * int(kept),
        receptive_field=fields[-1].last_maps.size if fields else None,
    )


class _Sizes:
    """Values that each module holds itself, each once."""

    def __init__(self, variables: dict[str, Any]):
        self.own: dict[tuple[str, ...], list[int]] = {}
        leaf: Any
        for collection, tree in variables.items():
            for path, leaf in flatten_dict(tree).items():
                pair = self.own.setdefault(path[:-1], [0, 0])
                pair[collection != "params"] += math.prod(leaf.shape)
        self.params = sum(pair[0] for pair in self.own.values())
        self.statistics = sum(pair[1] for pair in self.own.values())

    def take(self, path: tuple[str, ...]) -> tuple[int, int]:
        """Of a module, the first time that it is asked for."""
        params, statistics = self.own.pop(path, (0, 0))
        return params, statistics


def _make_layer(call: Call, sizes: _Sizes, training_only: bool) -> Layer | None:
    params, statistics = (0, 0) if call.type == "max_pool" else sizes.take(call.path)
    if not (params or statistics or call.forward or call.type == "max_pool"):
        return None  # a module of others, or an activation
    field, seen = call.field, None if call.field is None else call.field.last_maps
    return Layer(
        path="/".join(call.path),
        type=call.type,
        output_shape=tuple(call.shape),
        params=params,
        statistics=statistics,
        multiply_adds=call.forward,
        backward=call.backward,
        receptive_field=None if seen is None else seen.size,
        stride=None if seen is None else tuple(map(float, seen.stride)),
        everywhere=field is not None and (field.everywhere or not field.located),
        located=field is not None and field.located,
        training_only=training_only,
    )
