"""Splits of a data set: in memory, or decoded when they are asked for."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from flaxcnn.data.permutation import permutation
from flaxcnn.errors import UserError

T = TypeVar("T")

_CHUNK = 256  # images per task of a thread
_HOLD_OUT = 2  # purpose of a permutation; 1 is the order of training


class Split(Protocol):
    """Labelled images of one shape. Picklable: worker processes get a copy."""

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]."""
        ...

    def __len__(self) -> int: ...

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, H, W, C] and labels int32 [n]."""
        ...

    def subset(self, indices: np.ndarray) -> "Split":
        """The split of these examples, in this order."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split in memory: `images` uint8 [N, H, W, C], `labels` int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Split`."""
        return self.images[indices], self.labels[indices]

    def subset(self, indices: np.ndarray) -> "ArraySplit":
        """See `Split`."""
        return ArraySplit(*self.load(indices))


class Records(Protocol):
    """Encoded images of one split as the source numbers them. Picklable."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray | UserError, int]]:
        """For each index its decoded image, uint8 [H, W, C], or what is wrong with it; its label.

        All images have the same shape.
        """
        ...


class Opened(NamedTuple):
    """What a source holds, before any image is decoded."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    records: dict[
        str, Records
    ]  # of "train", and "validation" and "test" where they exist; or "all"


@dataclass(frozen=True)
class LazySplit:
    """The examples `indices` of `records`, decoded when loaded; `labels` int32 [N] are known."""

    records: Records
    indices: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Split`. Raises UserError if an image has been damaged since it was checked."""
        images = []
        for image, _ in self.records.read(self.indices[indices]):
            if isinstance(image, UserError):
                raise image
            images.append(image)
        return np.stack(images), self.labels[indices]

    def subset(self, indices: np.ndarray) -> "LazySplit":
        """See `Split`."""
        return LazySplit(self.records, self.indices[indices], self.labels[indices])


def load_records(
    records: Records,
    image_shape: tuple[int, int, int],
    *,
    title: str,
    on_bad_image: str,
    resident_limit: int,
) -> tuple[Split, int]:
    """Decodes every image once. Returns the split, and how many damaged images it leaves out.

    Up to `resident_limit` bytes of pixels stay in memory; a larger split decodes again on loading.
    `title` stands beside the progress bar. Raises UserError at a damaged image, or with
    on_bad_image="skip" prints its line on stderr.
    """
    count = len(records)
    resident = count * int(np.prod(image_shape)) <= resident_limit
    images = np.empty((count if resident else 0, *image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    good = np.ones(count, bool)

    def decode(indices: np.ndarray) -> list[UserError]:
        damaged = []
        for index, (image, label) in zip(indices, records.read(indices), strict=True):
            labels[index] = label
            if isinstance(image, UserError):
                good[index] = False
                damaged.append(image)
            elif resident:
                images[index] = image
        return damaged

    skipped = []
    for damaged in map_chunks(decode, count, title):
        if damaged and on_bad_image == "error":
            raise damaged[0]
        skipped += damaged
    for error in skipped:
        print(f"skipped: {error}", file=sys.stderr)
    if not good.any():
        raise UserError(f"{title}: none of the {count} images can be read")
    whole = ArraySplit(images, labels) if resident else LazySplit(records, np.arange(count), labels)
    return (whole if good.all() else whole.subset(np.flatnonzero(good))), len(skipped)


def map_chunks(function: Callable[[np.ndarray], T], count: int, title: str) -> Iterator[T]:
    """`function` of successive chunks of 0..count-1, in order, on threads.

    A progress bar appears on stderr when it takes longer than a second.
    """
    chunks = np.split(np.arange(count), range(_CHUNK, count, _CHUNK))
    threads = os.cpu_count() or 1
    with (
        tqdm(total=count, desc=title, unit=" images", delay=1, leave=False) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for chunk, result in zip(chunks, pool.map(function, chunks), strict=True):
                bar.update(len(chunk))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)  # the first error ends the rest


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices to keep and to hold out, stratified: `fraction` of each class, within one.

    Disjoint and exhaustive. Which examples of a class are held out depends on `seed`; how many
    altogether is N * fraction, rounded.
    """
    by_class = np.concatenate(
        [
            members[permutation(len(members), seed, purpose=_HOLD_OUT, index=int(label))]
            for label in np.unique(labels)
            for members in [np.flatnonzero(labels == label)]
        ]
    )
    # Every 1/fraction-th example of the classes laid end to end (systematic sampling).
    quota = np.floor(np.arange(len(labels) + 1) * fraction + 0.5)
    held = np.diff(quota) > 0
    return np.sort(by_class[~held]), np.sort(by_class[held])
