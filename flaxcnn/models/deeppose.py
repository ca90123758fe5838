"""DeepPose: joints by regression, refined on crops around what was predicted.

Toshev, Szegedy: DeepPose: human pose estimation via deep neural networks, CVPR 2014
(arXiv:1312.4659). The first stage is `deeppose`, an AlexNet with two outputs per joint.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from flaxcnn.errors import UserError
from flaxcnn.layers import avg_pool
from flaxcnn.models._dense import freeze_kwargs
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._network import Network
from flaxcnn.models._variant import make_variant
from flaxcnn.models.alexnet import AlexNet

Array = jax.Array


class PoseCascade(Network):
    """Two stages: [N, H, W, C] -> float32 [N, 2 * num_classes], the joints of the first, then both.

    `num_classes` is 2 K, x and y of each joint relative to the image's centre, as shares of its
    width and height (`tasks/pose.py`). The first stage sees the image reduced by `reduce`. The
    second sees, for each joint, a square around the place that the first gave it, of `share` of
    the image's sides, and says how far from its centre the joint is (section 3.2). No gradient
    goes through where crops are. In training their centres are moved at random, by a normal
    distribution of deviation `jitter` (a share of the image's sides), as the paper simulates the
    errors that a first stage makes on images it was not trained on.

    A run of the first stage alone is where this one can start, by
    `model.weights="run:...,into=backbone"`, and its second stage, too, if it is the same network
    with the same arguments.

    Attributes:
      first, second: names of networks, of the stages; `first_kwargs`, `second_kwargs`: arguments.
      reduce: of the image for the first stage, averages of so many pixels in each direction.
      share: of the image's sides that a crop shows.
      crop: side of the crops in pixels.
      jitter: see above.
    """

    first: str = "deeppose"
    second: str = "deeppose"
    first_kwargs: Mapping[str, Any] = FrozenDict()
    second_kwargs: Mapping[str, Any] = FrozenDict()
    reduce: int = 1
    share: float = 0.4
    crop: int = 32
    jitter: float = 0.05

    def __post_init__(self) -> None:
        """Makes the arguments what a network hashes."""
        for field in ("first_kwargs", "second_kwargs"):
            object.__setattr__(self, field, freeze_kwargs(getattr(self, field)))
        super().__post_init__()

    @property
    def classifier(self) -> str:
        """The network whose weights `adopt` takes."""
        return self.first

    def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the first stage, and of a second that is the same network."""
        same = self.second == self.first and self.second_kwargs == self.first_kwargs
        stages = ("stage1", "stage2") if same else ("stage1",)
        return {kind: dict.fromkeys(stages, tree) for kind, tree in variables.items()}

    def _make(self, stage: str, network: str, kwargs: Any) -> Any:
        from flaxcnn.models._registry import create_model  # which imports this file

        made: Any = create_model(
            network,
            num_classes=self.num_classes,
            dtype=self.dtype,
            axis_name=self.axis_name,
            **dict(kwargs),
        )
        return made.clone(parent=self, name=stage)

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """See the class. Raises UserError for a `num_classes` of no joints."""
        if self.num_classes < 2 or self.num_classes % 2:
            raise UserError(f"num_classes must be x and y of each joint, got {self.num_classes}")
        count, joints = images.shape[0], self.num_classes // 2
        window = (self.reduce, self.reduce)
        small = avg_pool(images, window, window) if self.reduce > 1 else images
        first = self._make("stage1", self.first, self.first_kwargs)(small, train=train)
        centres = jax.lax.stop_gradient(first).reshape(count, joints, 2)
        if train and self.jitter:
            noise = jax.random.normal(self.make_rng("dropout"), centres.shape)
            centres += self.jitter * noise
        centres = jnp.clip(centres, -0.5, 0.5)  # crops begin within the image
        crops = jax.vmap(functools.partial(crop_around, share=self.share, side=self.crop))(
            images, centres
        )
        refine = self._make("stage2", self.second, self.second_kwargs)
        seen = refine(crops.reshape(-1, *crops.shape[2:]), train=train)
        # Each crop says where all joints are; its own joint is the one that counts.
        own = jnp.arange(joints)
        moved = seen.reshape(count, joints, joints, 2)[:, own, own]
        second = (centres + self.share * moved).reshape(count, -1)
        return jnp.concatenate([first, second], axis=-1)


def crop_around(image: Array, centres: Array, *, share: float, side: int) -> Array:
    """Squares of an image [H, W, C] around K places, [K, side, side, C].

    `centres` [K, 2] are (x, y) from the image's centre as shares of its sides; a square is `share`
    of them. Bilinear, black beyond the borders. As two products of matrices, which accelerators do
    faster than they gather.
    """
    steps = ((jnp.arange(side) + 0.5) / side - 0.5) * share + 0.5

    def weigh(centre: Array, size: int) -> Array:  # [K] -> [K, side, size]
        at = (centre[:, None] + steps[None]) * size - 0.5
        return jnp.maximum(1 - jnp.abs(at[:, :, None] - jnp.arange(size)[None, None]), 0)

    rows = weigh(centres[:, 1], image.shape[0])
    columns = weigh(centres[:, 0], image.shape[1])
    strips = jnp.einsum("kyh,hwc->kywc", rows, image, precision="highest")
    return jnp.einsum("kxw,kywc->kyxc", columns, strips, precision="highest")


_variant = functools.partial(
    make_variant,
    num_classes=28,
    input_shape=(220, 220, 3),
    paper="Toshev and Szegedy, DeepPose: human pose estimation via deep neural networks",
    year=2014,
    task="pose",
)

VARIANTS = {
    "deeppose": _variant(AlexNet, 58_396_060, 1_131_274_784, border=4, dropout=0.6),
    "deeppose_cascade": _variant(PoseCascade, 116_792_120, 16_969_121_760, crop=220),
}

ALIASES = {"alexnet_pose28": "deeppose"}

DEVIATIONS = (
    Deviation(
        "deeppose",
        "Images of 220x220 and maps of 55x55, 27x27, 13x13; about 40 million parameters.",
        "55x55 from 220 needs a padded first convolution; the layers listed have 58,396,060 "
        "parameters (grouped convolutions would give 56,982,940).",
        "The layers as listed, and a border of 4 around the image.",
    ),
    Deviation(
        "deeppose_cascade",
        "A network of its own for each joint and stage; crops in proportion to the body, cut from "
        "the photograph; stages trained one after the other, the better of several kept.",
        "No port is in common use.",
        "One network for all joints of the second stage, of whose outputs each crop uses its "
        "joint's; crops of a fixed share of the network's image; stages trained together.",
    ),
)
