"""Seeded orders and numbers that are the same on every machine and every NumPy."""

import numpy as np


def permutation(count: int, seed: int, *, purpose: int, index: int = 0) -> np.ndarray:
    """A pseudorandom order of 0..count-1, int64 [count], a pure function of the arguments.

    `purpose` and `index` (an epoch, a class) separate the orders drawn from one seed. Made from
    the raw output of Philox 4x64 (Salmon 2011), which NumPy keeps fixed; its `Generator` methods
    may change from one release to the next.
    """
    bits = _philox(seed, purpose, index).random_raw(count)
    return np.argsort(bits, kind="stable")


def uniform(seed: int, *, purpose: int, index: int = 0) -> float:
    """A pseudorandom number in [0, 1), a pure function of the arguments, as `permutation`."""
    return (int(_philox(seed, purpose, index).random_raw()) >> 11) / 2**53


def _philox(seed: int, purpose: int, index: int) -> np.random.Philox:
    key = np.array([seed % 2**64, index], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, purpose])
