"""Which independent implementation each network is compared with, and on what images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 10


class Reference(NamedTuple):
    """A network of another library, equal to one of ours when it has its weights."""

    model: str  # our name
    layout: str
    source: str  # where it is: a dotted name, and for timm "timm:name"
    side: int  # of the images, which are square and have three channels
    arguments: Mapping[str, Any] = {}  # of theirs, besides the number of classes
    kwargs: Mapping[str, Any] = {}  # of ours, besides the number of classes
    batch: int = 2
    gain: float = 1.0  # variance of the kernels times fan-in: 2 for plain networks, 1 for residual
    momentum: float = 0.9  # of our BatchNorm
    training: bool = True  # whether gradients and batch statistics are compared too
    auxiliary_weight: float = 0.3  # of each auxiliary classifier in the loss

    @property
    def path(self) -> Path:
        """The file of its golden outputs."""
        return GOLDEN / f"{self.model}.{self.layout}.npz"


# One list per family, in alphabetical order.

RESNET = [
    Reference(
        f"resnet{depth}",
        "torchvision",
        f"torchvision.models.resnet{depth}",
        side=64,
        batch=4,
        training=depth in (18, 50),
    )
    for depth in (18, 34, 50, 101, 152)
]

REFERENCES = [
    *RESNET,
]
