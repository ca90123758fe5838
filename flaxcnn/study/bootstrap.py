"""How sure the difference of two cases is, by paired bootstrap (Efron and Tibshirani 1993).

Both cases have been trained with the same seeds and tested on the same examples, so what is drawn
is the difference on one example with one seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxcnn.tasks.task import Task

_RESAMPLES = 2000
Arrays = Mapping[str, np.ndarray]


def compare(task: Task, first: Sequence[Arrays], other: Sequence[Arrays]) -> dict[str, Any]:
    """The difference of a case from the first one; each has what its runs predicted, by seed.

    `of` is accuracy, or loss where the task's figure is no mean over examples; `mean` is other less
    first, `low` and `high` bound its 95 % interval. Empty where their examples differ.
    """
    pairs = list(zip(first, other, strict=True))
    names = [_names(arrays) for arrays in first]
    if any(not np.array_equal(n, _names(b)) for n, (_, b) in zip(names, pairs, strict=True)):
        return {}
    scores = [(_correct(task, a), _correct(task, b)) for a, b in pairs]
    accuracy = all(a is not None and b is not None for a, b in scores)
    if not accuracy:
        scores = [(a["loss"], b["loss"]) for a, b in pairs]
    differences = [np.asarray(b, np.float64) - np.asarray(a, np.float64) for a, b in scores]
    shared = all(np.array_equal(names[0], other) for other in names)
    low, high = paired_interval(differences, shared=shared)
    mean = float(np.mean([np.mean(of_seed) for of_seed in differences]))
    return {"of": "accuracy" if accuracy else "loss", "mean": mean, "low": low, "high": high}


def paired_interval(
    differences: Sequence[np.ndarray], *, shared: bool, seed: int = 0
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean difference over 2,000 resamples.

    `differences` has [N] of each seed. Seeds are drawn with replacement, and examples: with
    `shared`, where all seeds have the same, the same ones for every seed (Owen 2007), else within
    each seed. With one seed only examples are drawn.
    """
    random = np.random.default_rng(seed)
    count = len(differences)
    means = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        seeds = random.integers(count, size=count)
        if shared:
            drawn = random.integers(len(differences[0]), size=len(differences[0]))
            means[index] = np.mean([differences[s][drawn].mean() for s in seeds])
        else:
            means[index] = np.mean(
                [random.choice(differences[s], len(differences[s])).mean() for s in seeds]
            )
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _names(arrays: Arrays) -> np.ndarray:
    return arrays["path" if "path" in arrays else "index"]


def _correct(task: Task, arrays: Arrays) -> np.ndarray | None:
    """Whether each example's class is right, where that is the task's figure."""
    labels = task.labels(arrays) if task.monitor.name == "accuracy" else None
    return None if labels is None else labels[0] == labels[1]
