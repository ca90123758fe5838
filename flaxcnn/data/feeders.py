"""The two feeders that bring what a plan says to the device: from there, or from worker processes.

A batch is (images, targets), where targets are any pytree of arrays whose first axis is that of the
images; only the task looks inside.
"""

import atexit
import dataclasses
import gc
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Generator
from multiprocessing import connection
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flaxcnn.data.plans import Plan
from flaxcnn.data.splits import ArraySplit, LazySplit, Split
from flaxcnn.errors import UserError

Batch = tuple[Any, Any]  # images uint8 [N, H, W, C], targets


class Resident:
    """The whole split stays on the device and a call is given indices.

    `arrays` (images uint8 [N, H, W, C], targets) are to be placed there once.
    """

    def __init__(self, split: Split):
        self.arrays = split.load(np.arange(len(split)))

    def feed(self, plan: Plan, start: int = 0) -> Generator[np.ndarray]:
        """Indices int32 [K, B] of each call from `start` on."""
        for call in range(start, len(plan)):
            yield plan[call]

    @staticmethod
    def batch(arrays: Batch, indices: jax.Array) -> Batch:
        """Gathers the batch `indices` [B] from `arrays`, inside jit."""
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), arrays)


class Streaming:
    """A call is given its images, loaded ahead of time; nothing stays on the device.

    `workers` processes decode a split that is not in memory (0: threads of this one do). They
    import the main module, so a script that trains needs the usual `if __name__ == "__main__":`.
    """

    arrays = ()

    def __init__(self, split: Split, workers: int):
        self._split = split
        # Nothing to decode in an array, and every process would be sent a copy.
        self._workers = 0 if isinstance(split, ArraySplit) else workers

    def feed(self, plan: Plan, start: int = 0) -> Generator[Batch]:
        """Images uint8 [K, B, H, W, C] and targets [K, B, ...] of each call from `start` on.

        The processes end with the generator, or with this process however it ends.
        """
        stream = _stream(_Calls(self._split, plan, start), self._workers)
        _open_streams.add(stream)  # so that _close_streams finds it
        return stream

    @staticmethod
    def batch(arrays: Any, item: Batch) -> Batch:
        """The item is the batch."""
        return item


@dataclasses.dataclass(frozen=True)
class _Calls:
    """What the workers see of a feed: a sequence of loaded calls, and what was replaced in them.

    A worker's splits are copies, so this process notes what they have replaced.
    """

    split: Split
    plan: Plan
    start: int

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __getitem__(self, index: int) -> tuple[Batch, np.ndarray]:
        indices = self.plan[self.start + int(index)]
        if isinstance(self.split, LazySplit):
            batch, replaced = self.split.load_marked(indices.reshape(-1))
        else:
            batch, replaced = self.split.load(indices.reshape(-1)), np.zeros(indices.size, bool)
        shape = indices.shape
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (batch, replaced))

    def note(self, index: int, replaced: np.ndarray) -> None:
        """Notes what was `replaced` [K, B] in an item."""
        if isinstance(self.split, LazySplit) and replaced.any():
            self.split.note(self.plan[self.start + index][replaced])


def _stream(calls: _Calls, workers: int) -> Generator[Batch]:
    try:
        yield from _load_ahead(calls, workers)
    finally:
        # grain's iterators hold each other, and with them the shared memory of the last calls.
        gc.collect()


def _load_ahead(calls: _Calls, workers: int) -> Generator[Batch]:
    """The items of `calls`, in order, loaded by processes or by two threads."""
    if not len(calls):
        return
    import grain  # slow to import, and the resident feeder does without

    source = grain.MapDataset.source(calls)
    if workers:
        if not flags.FLAGS.is_parsed():  # in a notebook or plain script; grain reads its own
            flags.FLAGS.mark_as_parsed()
        dataset = grain.experimental.WithOptionsIterDataset(
            source.to_iter_dataset(grain.ReadOptions(num_threads=0)),
            grain.experimental.DatasetOptions(min_shm_size=_least_shared_size(calls, workers)),
        ).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=1),
            worker_init_fn=_start_worker,
        )
    else:
        dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    iterator = iter(dataset)
    try:
        for index in range(len(calls)):
            batch, replaced = next(iterator)
            calls.note(index, replaced)
            batch = _copy(batch)
            del replaced  # of shared memory, as the batch was
            yield batch
    except UserError as error:  # to which grain has added lines of its own
        raise UserError(str(error).partition("\n")[0]) from None
    finally:
        iterator.close()


def _least_shared_size(calls: _Calls, workers: int) -> int:
    """Bytes from which an array comes through shared memory: all, or none where it is scarce.

    Docker gives a container 64 MiB of it, and a worker that runs out is killed. Pipes are slower.
    """
    if not os.path.isdir("/dev/shm"):
        return 0
    one = jax.tree.leaves(calls.split.load(np.zeros(1, np.int32)))
    under_way = 4 * workers  # calls, measured
    needed = under_way * calls.plan[calls.start].size * sum(array.nbytes for array in one)
    return 0 if needed < shutil.disk_usage("/dev/shm").free else 2**62


def _copy(batch: Batch) -> Batch:
    """Out of the workers' shared memory, which then goes back at once.

    jax may keep an array it is given, uncopied, for as long as it likes.
    """
    return jax.tree.map(np.array, batch)


_open_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Ends the workers of abandoned feeds while the modules they need for it are still there."""
    for stream in list(_open_streams):
        stream.close()


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process outlive signals meant for its parent, but not the parent itself."""
    cv2.setNumThreads(1)  # there is a process for each core already
    # grain imports jax here; the accelerator belongs to the parent.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C, and `timeout` or a batch system's SIGTERM, reach the whole process group; the parent
    # answers by finishing a call and saving, for which it needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
