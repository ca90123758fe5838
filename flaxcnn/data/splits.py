"""Splits of a data set: in memory, or decoded when they are asked for."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from tqdm.auto import tqdm

from flaxcnn.data.permutation import permutation, uniform
from flaxcnn.errors import UserError

T = TypeVar("T")

_CHUNK = 256  # images per task of a thread
# Purposes of seeded orders; 1 is the order of training, 3 and 4 are of imbalance.py.
_HOLD_OUT, _CLASSES = 2, 5


class Split(Protocol):
    """Images of one shape and their targets. Picklable: worker processes get a copy."""

    @property
    def strata(self) -> np.ndarray:
        """int32 [N]: the label of each example, by which splits are divided and epochs balanced.

        All 0 where targets are no labels.
        """
        ...

    def __len__(self) -> int: ...

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """Images uint8 [n, H, W, C]; targets, a tree of arrays [n, ...], labels as int32 [n]."""
        ...

    def subset(self, indices: np.ndarray) -> "Split":
        """The split of these examples, in this order."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split in memory: `images` uint8 [N, H, W, C], `targets` a tree of arrays [N, ...]."""

    images: np.ndarray
    targets: Any

    @property
    def strata(self) -> np.ndarray:
        """See `Split`."""
        return _find_strata(self.targets, len(self))

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """See `Split`."""
        return jax.tree.map(lambda x: x[indices], (self.images, self.targets))

    def subset(self, indices: np.ndarray) -> "ArraySplit":
        """See `Split`."""
        return ArraySplit(*self.load(indices))


def _find_strata(targets: Any, count: int) -> np.ndarray:
    labels = isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype == np.int32
    return targets if labels else np.zeros(count, np.int32)


class Records(Protocol):
    """Encoded images of one split as the source numbers them. Picklable."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, Any]]:
        """For each index its decoded image, uint8 [H, W, C], or what is wrong with it; its target.

        All images have the same shape. A target is a label, or a tree of arrays with the same
        shapes for every example.
        """
        ...


class Opened(NamedTuple):
    """What a source holds, before any image is decoded."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    records: dict[
        str, Records
    ]  # of "train", and "validation" and "test" where they exist; or "all"
    version: str = ""  # of a set that is published in versions
    files: dict[str, dict[str, int]] = {}  # of a folder: by split each image's path and its bytes


@dataclass(frozen=True)
class LazySplit:
    """The examples `indices` of `records`, decoded when loaded; `strata` as of `Split`."""

    records: Records
    indices: np.ndarray
    strata: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """See `Split`. Raises UserError if an image has been damaged since it was checked."""
        images, targets = [], []
        for image, target in self.records.read(self.indices[indices]):
            if isinstance(image, UserError):
                raise image
            images.append(image)
            targets.append(target)
        return np.stack(images), _stack(targets)

    def subset(self, indices: np.ndarray) -> "LazySplit":
        """See `Split`."""
        return LazySplit(self.records, self.indices[indices], self.strata[indices])


def _is_label(target: Any) -> bool:
    return isinstance(target, int | np.integer)


def _stack(targets: list[Any]) -> Any:
    """One tree of arrays [n, ...] of n trees; labels become int32 [n]."""
    if _is_label(targets[0]):
        return np.array(targets, np.int32)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *targets)


def load_records(
    records: Records, image_shape: tuple[int, int, int], *, title: str, resident_limit: int
) -> tuple[Split, dict[int, UserError]]:
    """Decodes every image once. Returns the split of those that can be read, and the errors.

    Up to `resident_limit` bytes of pixels stay in memory; a larger split decodes again on loading.
    `title` stands beside the progress bar. The errors are by the index of the skipped image.
    """
    count = len(records)
    resident = count * int(np.prod(image_shape)) <= resident_limit
    images = np.empty((count if resident else 0, *image_shape), np.uint8)
    targets: list[Any] = [None] * count

    def decode(indices: np.ndarray) -> dict[int, UserError]:
        bad = {}
        for index, (image, target) in zip(indices, records.read(indices), strict=True):
            if resident or _is_label(target):  # what is no label may be as large as an image
                targets[index] = target
            if isinstance(image, UserError):
                bad[int(index)] = image
            elif resident:
                images[index] = image
        return bad

    bad: dict[int, UserError] = {}
    for of_chunk in map_chunks(decode, count, title):
        bad |= of_chunk
    if resident:
        whole = ArraySplit(images, _stack(targets))
    else:
        labelled = _is_label(targets[0])
        strata = _stack(targets) if labelled else np.zeros(count, np.int32)
        whole = LazySplit(records, np.arange(count), strata)
    return (whole.subset(np.delete(np.arange(count), list(bad))) if bad else whole), bad


def map_chunks(function: Callable[[np.ndarray], T], count: int, title: str) -> Iterator[T]:
    """`function` of successive chunks of 0..count-1, in order, on threads.

    On a terminal a progress bar appears when it takes longer than a second.
    """
    chunks = np.split(np.arange(count), range(_CHUNK, count, _CHUNK))
    threads = os.cpu_count() or 1
    with (
        tqdm(total=count, desc=title, unit=" images", delay=1, leave=False, disable=None) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
                bar.update(len(chunk))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)  # the first error ends the rest


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, *, by_place: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices to keep and to hold out, stratified: `fraction` of each class, within one.

    Disjoint and exhaustive; a class always keeps one example, so that one of a single example holds
    none out. How many are held out altogether is `fraction` of the examples of the other classes,
    rounded, less those that a class had to keep. Which ones depends on `seed`; so does, where a
    class is too small for its share to make one example, which classes hold one out. With
    `by_place` that depends on the order of the classes, and a class may keep none: as of runs that
    have not recorded their splits.
    """
    classes, counts = np.unique(labels, return_counts=True)
    offset = 0.5
    if not by_place and (counts * fraction < 1).any():
        order = permutation(len(classes), seed, purpose=_CLASSES)
        order = order[counts[order] > 1]
        classes, rest = classes[order], counts[order].sum() * fraction % 1
        low, high = (0, 1 - rest) if rest < 0.5 else (1 - rest, 1)  # the same number altogether
        offset = low + (high - low) * uniform(seed, purpose=_CLASSES, index=1)
    drawn, start = [np.zeros(0, np.int64)], 0
    for label in classes:
        members = np.flatnonzero(labels == label)
        members = members[permutation(len(members), seed, purpose=_HOLD_OUT, index=int(label))]
        # Every 1/fraction-th example of the classes laid end to end (systematic sampling).
        quota = np.floor(np.arange(start, start + len(members) + 1) * fraction + offset)
        start += len(members)
        held = np.diff(quota) > 0
        if held.all() and not by_place:
            held[0] = False
        drawn.append(members[held])
    held = np.isin(np.arange(len(labels)), np.concatenate(drawn))
    return np.flatnonzero(~held), np.flatnonzero(held)
