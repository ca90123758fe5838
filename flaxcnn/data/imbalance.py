"""Class imbalance: which training examples are kept, and how often an epoch shows each of them.

Pure functions of labels, seed and epoch, known to the plan alone: both feeders follow it, and
evaluation never comes here. A repeated image stands at another place of its epoch each time, so
that noise and augmentation, which go by step and position, make the copies differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxcnn.data.permutation import permutation
from flaxcnn.data.splits import Split
from flaxcnn.errors import UserError

_SUBSAMPLE, _REPEAT = 3, 4  # purposes of a permutation


def subsample(
    split: Split, class_names: Sequence[str], shares: Mapping[str, float], seed: int
) -> Split:
    """`split` with the share in (0, 1] of each class in `shares`, rounded, at least one image.

    Which ones depends on `seed` only, and those of a smaller share are among those of a larger.
    Raises UserError for an unknown class.
    """
    kept = np.ones(len(split), bool)
    for label, share in by_label("data.balance.subsample", class_names, shares).items():
        members = np.flatnonzero(split.strata == label)
        count = max(1, int(np.floor(len(members) * share + 0.5)))
        order = permutation(len(members), seed, purpose=_SUBSAMPLE, index=label)
        kept[members[order[count:]]] = False
    return split if kept.all() else split.subset(np.flatnonzero(kept))


@dataclass(frozen=True, eq=False)
class Draws:
    """An epoch shows the images of class c `per_class[c]` times altogether.

    Each image of a class as often as the others within one; which ones are shown once more is
    drawn anew every epoch. `labels` int32 [N], `per_class` int64 [C]; without classes all are 0.
    """

    labels: np.ndarray
    per_class: np.ndarray

    def __len__(self) -> int:
        return int(self.per_class.sum())

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The examples of an epoch, int64 [len(self)], sorted: index i as often as it is shown."""
        repeats = np.zeros(len(self.labels), np.int64)
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            repeats[members], extra = divmod(int(self.per_class[label]), len(members))
            if extra:
                index = epoch * len(self.per_class) + int(label)
                order = permutation(len(members), seed, purpose=_REPEAT, index=index)
                repeats[members[order[:extra]]] += 1
        return np.repeat(np.arange(len(self.labels)), repeats)


def make_draws(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    sampler: str = "natural",
    repeat_threshold: float = 0.001,
    expand: Mapping[str, int] | None = None,
) -> Draws:
    """How often each class of the training split is drawn in an epoch.

    "natural": every image once, and once more for each copy in `expand` (extra copies by class).
    "balanced" and "sqrt": as many draws as images, divided equally among the classes that occur,
    or in proportion to the square root of their images (Kang et al. 2020, equation 1, q = 0 and
    1/2). "repeat_factor": an image of class c max(1, sqrt(t / f_c)) times, where f_c is the share
    of the class and t `repeat_threshold` (Gupta et al. 2019, LVIS). The sources draw or round each
    image at random; here the draws of a class are exact, so that epochs have the same length.
    Raises UserError for an unknown class.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    copies = np.ones_like(counts)
    for label, extra in by_label("data.balance.expand", class_names, expand or {}).items():
        copies[label] += extra
    if sampler == "natural":
        draws = counts * copies
    elif sampler == "balanced":
        draws = _divide(len(labels), (counts > 0).astype(np.float64))
    elif sampler == "sqrt":
        draws = _divide(len(labels), np.sqrt(counts))
    else:
        shares = np.maximum(counts, 1) / len(labels)
        factors = np.maximum(1.0, np.sqrt(repeat_threshold / shares))
        draws = np.floor(counts * factors + 0.5).astype(np.int64)
    return Draws(labels, draws)


def _divide(total: int, weights: np.ndarray) -> np.ndarray:
    """`total` in whole parts in proportion to `weights`, each within one, summing to it exactly."""
    ends = np.cumsum(weights)
    return np.diff(np.floor(ends / ends[-1] * total + 0.5), prepend=0.0).astype(np.int64)


def by_label(field: str, class_names: Sequence[str], values: Mapping[str, Any]) -> dict[int, Any]:
    """`values` by label instead of name. Raises UserError for an unknown class."""
    labels = {name: label for label, name in enumerate(class_names)}
    for name in values:
        if name not in labels:
            known = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise UserError(f"{field}: there is no class {name!r}; the classes are {known}")
    return {labels[name]: value for name, value in values.items()}
