"""What the registry knows about a named network."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network with the arguments that give it a public name, and the size it then has.

    Sizes hold for `input_shape` (height, width, channels) and the arguments in `kwargs`: `params`
    counts trainable values, `statistics` the running means and variances of BatchNorm, `macs` the
    multiply-adds of convolutions and dense layers for one image. `task` is what it is for, a name
    in `flaxcnn.tasks`: a classifier returns logits [N, num_classes].
    """

    network: type[nn.Module]
    kwargs: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    params: int
    macs: int
    paper: str
    year: int
    statistics: int = 0
    task: str = "classification"


def make_variant(
    network: type[nn.Module],
    params: int,
    macs: int,
    statistics: int = 0,
    *,
    input_shape: tuple[int, int, int],
    paper: str,
    year: int,
    task: str = "classification",
    **kwargs: Any,
) -> Variant:
    """A Variant with the arguments `kwargs`: by `functools.partial` a family's are said once."""
    return Variant(network, kwargs, input_shape, params, macs, paper, year, statistics, task)
