"""How right predicted joints are: PCK, PCKh and PCP.

`points` and `true` are [N, K, 2] in pixels of images that keep their proportions; `visible` is bool
[N, K]. A joint that is not visible counts nowhere, nor does one of a body without a measure of its
size. A figure that nothing counts in is NaN.
"""

from collections.abc import Sequence

import numpy as np


def find_joint(names: Sequence[str], side: str, part: str) -> int | None:
    """The index of a joint: `l_hip` or `left_hip` for ("l", "hip"); a side "" has none."""
    wanted = {part} if not side else {f"{side}_{part}", f"{dict(l='left', r='right')[side]}_{part}"}
    found = [i for i, name in enumerate(names) if name.lower() in wanted]
    return found[0] if found else None


def measure_distances(true: np.ndarray, visible: np.ndarray, one: int, other: int) -> np.ndarray:
    """Pixels between two joints of each body, [N]; NaN where one is not visible."""
    distance = np.linalg.norm(true[:, one] - true[:, other], axis=-1)
    return np.where(visible[:, one] & visible[:, other] & (distance > 0), distance, np.nan)


def measure_torsos(true: np.ndarray, visible: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A torso's diameter, [N]: from left shoulder to right hip (Sapp, Taskar 2013, CVPR).

    Where names have no such joints, the longer side of the box around visible joints (Yang, Ramanan
    2013, PAMI 35).
    """
    shoulder, hip = find_joint(names, "l", "shoulder"), find_joint(names, "r", "hip")
    if shoulder is not None and hip is not None:
        return measure_distances(true, visible, shoulder, hip)
    known = np.where(visible[..., None], true, np.nan)
    sides = np.full((len(true), 2), np.nan)
    some = visible.any(axis=1)
    sides[some] = np.nanmax(known[some], axis=1) - np.nanmin(known[some], axis=1)
    longer = sides.max(axis=1)
    return np.where(longer > 0, longer, np.nan)


def measure_pck(
    points: np.ndarray, true: np.ndarray, visible: np.ndarray, scale: np.ndarray, share: float
) -> np.ndarray:
    """Shares of right joints, [K + 1], of each joint and of all together.

    One is right if it is at most `share` times `scale` [N] from its true place: PCK with the torso,
    PCKh (Andriluka et al. 2014, CVPR) with half the length of the head.
    """
    counted = visible & np.isfinite(scale)[:, None]
    distance = np.linalg.norm(points - true, axis=-1)
    right = counted & (distance <= share * np.nan_to_num(scale)[:, None])
    return _shares(right, counted)


def measure_pcp(
    points: np.ndarray,
    true: np.ndarray,
    visible: np.ndarray,
    limbs: Sequence[tuple[int, int]],
    share: float = 0.5,
) -> np.ndarray:
    """Shares of right limbs, [L + 1], of each and of all together.

    A limb is right if both its ends are at most half its true length from their true places
    (Ferrari et al. 2008, CVPR; the strict form of Pishchulin et al. 2012, CVPR, as in DeepPose).
    """
    one, other = np.array(limbs, int).reshape(-1, 2).T
    length = np.linalg.norm(true[:, one] - true[:, other], axis=-1)
    distance = np.linalg.norm(points - true, axis=-1)
    counted = visible[:, one] & visible[:, other] & (length > 0)
    right = counted & (np.maximum(distance[:, one], distance[:, other]) <= share * length)
    return _shares(right, counted)


def _shares(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    some = np.append(right.sum(axis=0), right.sum()).astype(np.float64)
    everything = np.append(counted.sum(axis=0), counted.sum())
    return np.divide(some, everything, out=np.full(len(some), np.nan), where=everything > 0)
