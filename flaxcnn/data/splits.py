"""Splits of a data set: in memory, or decoded when they are asked for."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from tqdm.auto import tqdm

from flaxcnn.data.permutation import permutation, uniform
from flaxcnn.errors import UserError

T = TypeVar("T")

_CHUNK = 256  # images per task of a thread
_MOST_IN_A_ROW = 1000  # images that cannot be read: then something else is wrong than they
SHOWN = 20  # images that cannot be read, named in one message
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

    def labels(self) -> np.ndarray | None:
        """The targets int32 [N]; None where they are no labels, or only in the images' records."""
        return None

    def read_labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The targets int32 [n] from the records, decoding no image; None where they are others."""
        return None

    def streamed(self) -> "Records":
        """These records, to be decoded again in each epoch, as fast as a good picture allows."""
        return self


class Opened(NamedTuple):
    """What a source holds, before any image is decoded."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    records: dict[
        str, Records
    ]  # of "train", and "validation" and "test" where they exist; or "all"
    version: str = ""  # of a set that is published in versions
    files: dict[str, dict[str, int]] = {}  # of a folder: by split each image's path and its bytes
    labelled: bool = True  # whether targets are labels, where there are classes


@dataclass(frozen=True)
class LazySplit:
    """The examples `indices` of `records`, decoded when loaded.

    `labels` are theirs, None where they are only in the records: `strata` reads all of these when
    it is first asked for, which of ImageNet are 138 GB.

    With `replace` the next image of the split (after the last, the first) that can be read stands
    in, with its target, for one that cannot: which one depends on the files alone, so that steps
    are the same whenever it is found. Without, such an image is an error when it is loaded.
    """

    records: Records
    indices: np.ndarray
    labels: np.ndarray | None
    replace: bool = False
    replaced: dict[int, str] = field(default_factory=dict)  # what is wrong with those found so far

    @property
    def strata(self) -> np.ndarray:
        """See `Split`."""
        return self._strata

    @functools.cached_property
    def _strata(self) -> np.ndarray:
        labels = self.records.read_labels(self.indices) if self.labels is None else self.labels
        return np.zeros(len(self), np.int32) if labels is None else labels

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """See `Split`. Raises UserError for an image that cannot be read, unless `replace`."""
        batch, replaced = self.load_marked(indices)
        self.note(indices[replaced])
        return batch

    def load_marked(self, indices: np.ndarray) -> tuple[tuple[np.ndarray, Any], np.ndarray]:
        """What `load` gives, and bool [n]: which were replaced. For workers: they cannot `note`."""
        images, targets, replaced = [], [], np.zeros(len(indices), bool)
        for place, (image, target) in enumerate(self.records.read(self.indices[indices])):
            if isinstance(image, UserError):
                replaced[place] = True
                image, target = self._load_next(int(indices[place]), image)
            images.append(image)
            targets.append(target)
        return (np.stack(images), _stack(targets)), replaced

    def _load_next(self, index: int, error: UserError) -> tuple[np.ndarray, Any]:
        if not self.replace:
            raise UserError(f"{error} (to skip it: data.on_bad_image=skip)")
        for ahead in range(1, min(len(self), _MOST_IN_A_ROW)):
            following = self.indices[[(index + ahead) % len(self)]]
            ((image, target),) = self.records.read(following)
            if not isinstance(image, UserError):
                return image, target
        raise UserError(f"{min(len(self), _MOST_IN_A_ROW)} images in a row cannot be read: {error}")

    def note(self, indices: np.ndarray) -> None:
        """Remembers that these were replaced, and names on stderr those that are new."""
        for index in map(int, self.indices[indices]):
            if index not in self.replaced:
                ((error, _),) = self.records.read(np.array([index]))
                self.replaced[index] = str(error)
                if len(self.replaced) <= SHOWN:
                    print(f"skipped: {error}", file=sys.stderr)

    def subset(self, indices: np.ndarray) -> "LazySplit":
        """See `Split`."""
        labels = self.strata[indices] if knows_strata(self) else None
        return dataclasses.replace(self, indices=self.indices[indices], labels=labels)


def knows_strata(split: Split) -> bool:
    """Whether `strata` of `split` reads no record."""
    return not isinstance(split, LazySplit) or split.labels is not None or "_strata" in vars(split)


def _stack(targets: list[Any]) -> Any:
    """One tree of arrays [n, ...] of n trees; labels become int32 [n]."""
    if not targets or isinstance(targets[0], int | np.integer):
        return np.array(targets, np.int32)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *targets)


def stream_records(records: Records, *, replace: bool) -> LazySplit:
    """The split of all records, none of which is decoded now; `replace` as of `LazySplit`."""
    return LazySplit(records.streamed(), np.arange(len(records)), records.labels(), replace)


def load_records(
    records: Records, image_shape: tuple[int, int, int], *, title: str
) -> tuple[ArraySplit, dict[int, UserError]]:
    """Decodes every image into memory: the split of those that can be read, and the errors.

    `title` stands beside the progress bar. The errors are by the index of the image they leave out.
    """
    count = len(records)
    images = np.empty((count, *image_shape), np.uint8)
    targets: list[Any] = [None] * count

    def decode(indices: np.ndarray) -> dict[int, UserError]:
        bad = {}
        for index, (image, target) in zip(indices, records.read(indices), strict=True):
            targets[index] = target
            if isinstance(image, UserError):
                bad[int(index)] = image
            else:
                images[index] = image
        return bad

    bad: dict[int, UserError] = {}
    for of_chunk in map_chunks(decode, count, title):
        bad |= of_chunk
    if bad:
        good = np.delete(np.arange(count), list(bad))
        images, targets = images[good], [targets[index] for index in good]
    return ArraySplit(images, _stack(targets)), bad


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
