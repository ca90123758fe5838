"""What is subtracted from pixels, and what they are divided by, before a network sees them."""

from typing import Any

import numpy as np

from flaxcnn.data.permutation import permutation
from flaxcnn.data.splits import ArraySplit, Split, map_chunks
from flaxcnn.errors import UserError

_SAMPLED = 2000  # images of a sample
_SAMPLE = 6  # purpose of a permutation; plans.py, splits.py and imbalance.py have 1 to 5
_SAMPLE_SEED = 0  # of no run: runs on one training split have one normalisation


def find_normalization(how: Any, split: Split, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, float32 [C], that `data.normalization` asks for.

    `how` is "auto", "data", "sample", or (mean, std) for pixels scaled to 0..1. A sample is
    the same whatever the run's seed. Raises UserError for numbers of other than `channels`.
    """
    if not isinstance(how, str):
        mean, std = (np.array(values, np.float32) for values in how)
        if len(mean) != channels:
            raise UserError(f"data.normalization has {len(mean)} channels, images have {channels}")
        return mean, std
    if how == "data" or (how == "auto" and isinstance(split, ArraySplit)):
        return compute_normalization(split)
    chosen = permutation(len(split), _SAMPLE_SEED, purpose=_SAMPLE)[:_SAMPLED]
    return compute_normalization(split.subset(np.sort(chosen)))


def compute_normalization(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, float32 [C], of pixels scaled to 0..1.

    Sums of integers, so exact and independent of the order. A channel that is constant over the
    whole split gets the deviation 1: divided by it, its pixels become 0.
    """

    def histogram(indices: np.ndarray) -> np.ndarray:
        pixels = split.load(indices)[0]
        channels = pixels.reshape(-1, pixels.shape[-1]).T
        return np.stack([np.bincount(channel, minlength=256) for channel in channels])

    counts = sum(map_chunks(histogram, len(split), "normalisation"))
    values = np.arange(256)
    total, first, second = (counts @ values**power for power in range(3))
    mean = first / total
    variance = [  # in Python's integers: total * second exceeds 64 bits for a large set
        (int(n) * int(s) - int(m) ** 2) / int(n) ** 2
        for n, m, s in zip(total, first, second, strict=True)
    ]
    std = np.sqrt(variance)
    std[std == 0] = 255
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
