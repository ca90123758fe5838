"""What networks that stand on another network of the zoo share."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax.core import FrozenDict

from flaxcnn.errors import UserError
from flaxcnn.models._dense import DenseNetwork, freeze_kwargs

Array = jax.Array


class BackboneNetwork(DenseNetwork, kw_only=True):
    """A network whose maps are those of the stages of another.

    Attributes:
      backbone: name of a network with stages; its parameters are under `backbone`.
      backbone_kwargs: arguments of it.
    """

    backbone: str
    backbone_kwargs: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        """Makes the arguments what a network hashes."""
        object.__setattr__(self, "backbone_kwargs", freeze_kwargs(self.backbone_kwargs))
        super().__post_init__()

    @property
    def classifier(self) -> str:
        """The network whose weights `adopt` takes."""
        return self.backbone

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A classifier's variables, by the names that they have here."""
        return {kind: {"backbone": tree} for kind, tree in variables.items()}

    def run_backbone(self, images: Array, *, train: bool, **kwargs: Any) -> tuple[Array, ...]:
        """The maps of all its stages; `kwargs` are arguments that `backbone_kwargs` may replace."""
        from flaxcnn.models._registry import create_model  # which imports networks of this kind

        network: Any = create_model(
            self.backbone,
            dtype=self.dtype,
            axis_name=self.axis_name,
            remat=self.remat,
            features_only=True,
            **{**kwargs, **self.backbone_kwargs},
        )
        return network.clone(parent=self, name="backbone")(images, train=train)


def by_stride(images: Array, maps: tuple[Array, ...]) -> dict[int, Array]:
    """The last maps of each stride, a power of two, by their stride."""
    return {2 ** round(math.log2(images.shape[1] / x.shape[1])): x for x in maps}


def choose_strides(
    network: BackboneNetwork, images: Array, maps: tuple[Array, ...], strides: tuple[int, ...]
) -> list[Array]:
    """The last maps of each of `strides`. Raises UserError for a stride that there is not."""
    found = by_stride(images, maps)
    for stride in strides:
        if stride not in found:
            known = ", ".join(map(str, found))
            raise UserError(
                f"{type(network).__name__} needs maps of stride {stride}: {network.backbone} has "
                f"maps of stride {known}"
            )
    return [found[stride] for stride in strides]
