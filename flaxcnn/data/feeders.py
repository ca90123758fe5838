"""Plans, which say what each call sees, and the two feeders that bring it to the device.

A plan is a pure function of the config: a run goes on from its step number alone.
"""

import atexit
import dataclasses
import functools
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

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flaxcnn.data.imbalance import Draws
from flaxcnn.data.permutation import permutation
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.errors import UserError

_TRAINING_ORDER = 1  # purpose of a permutation; 2 is holding out, 3 and 4 are of imbalance.py


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """The indices of each call of a run: `plan[i]` is int32 [steps, batch_size].

    Every epoch is a fresh permutation of the split, or of the examples that `draws` gives, cut into
    whole batches; the rest of it is dropped. Calls start at multiples of `steps_per_call` within an
    epoch, so the last call of an epoch may be shorter. Raises UserError if an epoch is smaller than
    a batch.
    """

    num_examples: int
    batch_size: int
    steps_per_call: int
    epochs: int
    seed: int
    draws: Draws | None = None  # None: every example once

    def __post_init__(self):
        if self.batch_size > self.examples_per_epoch:
            raise UserError(
                f"data.batch_size is {self.batch_size}, more than the {self.examples_per_epoch} "
                "images of an epoch of the training split"
            )

    @property
    def examples_per_epoch(self) -> int:
        """Images that an epoch shows, repeated ones counted each time."""
        return self.num_examples if self.draws is None else len(self.draws)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in an epoch."""
        return self.examples_per_epoch // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer updates in the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def _calls_per_epoch(self) -> int:
        return -(-self.steps_per_epoch // self.steps_per_call)

    def __len__(self) -> int:
        return self.epochs * self._calls_per_epoch

    def first_step(self, call: int) -> int:
        """The step that `call` starts at; `total_steps` for the call after the last."""
        epoch, call = divmod(call, self._calls_per_epoch)
        return epoch * self.steps_per_epoch + call * self.steps_per_call

    def call_at(self, step: int) -> int:
        """The call that starts at `step`. Raises ValueError if none does."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        call, inside = divmod(step_of_epoch, self.steps_per_call)
        if inside or not 0 <= step <= self.total_steps:
            raise ValueError(f"no call of {self} starts at step {step}")
        return epoch * self._calls_per_epoch + call

    def __getitem__(self, call: int) -> np.ndarray:
        if not 0 <= call < len(self):
            raise IndexError(f"call {call} of {len(self)}")
        epoch, call = divmod(call, self._calls_per_epoch)
        start = call * self.steps_per_call
        stop = min(start + self.steps_per_call, self.steps_per_epoch)
        examples = self.num_examples if self.draws is None else self.draws
        order = _epoch_order(examples, self.seed, epoch)
        return order[start * self.batch_size : stop * self.batch_size].reshape(stop - start, -1)


@functools.lru_cache(maxsize=2)  # the calls of an epoch follow each other
def _epoch_order(examples: Draws | int, seed: int, epoch: int) -> np.ndarray:
    shown = np.arange(examples) if isinstance(examples, int) else examples.epoch(seed, epoch)
    order = permutation(len(shown), seed, purpose=_TRAINING_ORDER, index=epoch)
    return shown[order].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Every example once, in order: `plan[i]` is int32 [batches, batch_size].

    All calls have the same shape, of at most `batches_per_call` batches, and the end is padded with
    example 0: `plan.mask(i)`, float32 of that shape, is 0 there and 1 elsewhere.
    """

    num_examples: int
    batch_size: int
    batches_per_call: int

    @property
    def _batches(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __len__(self) -> int:
        return -(-self._batches // self.batches_per_call)

    def _positions(self, call: int) -> np.ndarray:
        if not 0 <= call < len(self):
            raise IndexError(f"call {call} of {len(self)}")
        batches = -(-self._batches // len(self))  # even, so that little is padded
        size = batches * self.batch_size
        return np.arange(call * size, (call + 1) * size).reshape(batches, self.batch_size)

    def __getitem__(self, call: int) -> np.ndarray:
        positions = self._positions(call)
        return np.where(positions < self.num_examples, positions, 0).astype(np.int32)

    def mask(self, call: int) -> np.ndarray:
        """float32 [batches, batch_size]: 1 for an example, 0 for padding."""
        return (self._positions(call) < self.num_examples).astype(np.float32)


Plan = TrainPlan | EvalPlan


class Resident:
    """The whole split stays on the device and a call is given indices.

    `arrays` (images uint8 [N, H, W, C], labels int32 [N]) are to be placed there once.
    """

    def __init__(self, split: Split):
        self.arrays = split.load(np.arange(len(split)))

    def feed(self, plan: Plan, start: int = 0) -> Generator[np.ndarray]:
        """Indices int32 [K, B] of each call from `start` on."""
        for call in range(start, len(plan)):
            yield plan[call]

    @staticmethod
    def batch(arrays: Any, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gathers the batch `indices` [B] from `arrays`, inside jit."""
        images, labels = arrays
        return jnp.take(images, indices, axis=0, mode="clip"), jnp.take(
            labels, indices, axis=0, mode="clip"
        )


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

    def feed(self, plan: Plan, start: int = 0) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """Images uint8 [K, B, H, W, C] and labels int32 [K, B] of each call from `start` on.

        The processes end with the generator, or with this process however it ends.
        """
        stream = _stream(_Calls(self._split, plan, start), self._workers)
        _open_streams.add(stream)  # so that _close_streams finds it
        return stream

    @staticmethod
    def batch(arrays: Any, item: Any) -> Any:
        """The item is the batch."""
        return item


@dataclasses.dataclass(frozen=True)
class _Calls:
    """What the workers see of a feed: a sequence of loaded calls."""

    split: Split
    plan: Plan
    start: int

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        indices = self.plan[self.start + int(index)]
        images, labels = self.split.load(indices.reshape(-1))
        return images.reshape(*indices.shape, *images.shape[1:]), labels.reshape(indices.shape)


def _stream(calls: _Calls, workers: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
    try:
        yield from _load_ahead(calls, workers)
    finally:
        # grain's iterators hold each other, and with them the shared memory of the last calls.
        gc.collect()


def _load_ahead(calls: _Calls, workers: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
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
        for _ in range(len(calls)):
            yield _copy(next(iterator))
    finally:
        iterator.close()


def _least_shared_size(calls: _Calls, workers: int) -> int:
    """Bytes from which an array comes through shared memory: all, or none where it is scarce.

    Docker gives a container 64 MiB of it, and a worker that runs out is killed. Pipes are slower.
    """
    if not os.path.isdir("/dev/shm"):
        return 0
    image, _ = calls.split.load(np.zeros(1, np.int32))
    under_way = 4 * workers  # calls, measured
    needed = under_way * calls.plan[calls.start].size * image.nbytes
    return 0 if needed < shutil.disk_usage("/dev/shm").free else 2**62


def _copy(item: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Out of the workers' shared memory, which then goes back at once.

    jax may keep an array it is given, uncopied, for as long as it likes.
    """
    images, labels = item
    return np.array(images), np.array(labels)


_open_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Ends the workers of abandoned feeds while the modules they need for it are still there."""
    for stream in list(_open_streams):
        stream.close()


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process outlive signals meant for its parent, but not the parent itself."""
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
