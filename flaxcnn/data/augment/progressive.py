"""Training images that grow from epoch to epoch, as in progressive learning (Tan and Le 2021).

A policy with such an entry is one policy for each stretch of epochs, and shapes within one are
static: a run compiles one program for each size.
"""

from collections.abc import Sequence
from typing import Any

from flaxcnn.data.augment.kinds import Operation
from flaxcnn.data.augment.operations import resize
from flaxcnn.data.augment.settings import check_number, freeze_policy
from flaxcnn.errors import UserError

_NAME = "progressive_resize"


def progressive_resize(stages: tuple[tuple[int, int, int], ...]) -> Operation:
    """`resize` to another size from some epochs on: ((0, 160, 160), (60, 192, 192)).

    A stage is (epoch, height, width). Where no epoch is said the last of them counts.
    """
    known = isinstance(stages, tuple) and len(stages) > 0
    if not known or any(not isinstance(s, tuple) or len(s) != 3 for s in stages):
        form = "(epoch, height, width) each, as ((0, 160, 160), (60, 192, 192))"
        raise UserError(f"stages must be {form}, got {stages!r}")
    epochs = [stage[0] for stage in stages]
    for epoch in epochs:
        check_number("epoch", epoch, 0, 10**6, whole=True)
    if epochs[0] or sorted(set(epochs)) != epochs:
        raise UserError(f"epochs of the stages must rise from 0, got {epochs}")
    return [resize(height, width) for _, height, width in stages][-1]


def find_stages(policy: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    """The epochs from which `policy`, checked, gives images another size; 0 is the first."""
    stages = [stage for entry in freeze_policy(policy) for stage in _stages(entry)]
    return tuple(sorted({0, *(epoch for epoch, *_ in stages)}))


def policy_at(policy: Sequence[Sequence[Any]], epoch: int) -> tuple[Any, ...]:
    """`policy`, checked, as it is in `epoch`."""

    def plain(entry: Any) -> Any:
        sizes = [size for start, *size in _stages(entry) if start <= epoch]
        return ("resize", *sizes[-1]) if sizes else entry

    return tuple(map(plain, freeze_policy(policy)))


def _stages(entry: Any) -> Any:
    name, *settings = entry
    if name != _NAME:
        return ()
    return settings[0]["stages"] if isinstance(settings[0], dict) else settings[0]
