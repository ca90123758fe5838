"""The one file that knows about orbax: saves and restores a `TrainState`, whole or not at all.

A checkpoint holds the state, the validation history up to its step, and two SHA-256: of the state's
bytes, and of its layout, by which one of another version is told from a damaged one. It is hashed
and written in the background and appears under its name, the step, only when complete (orbax
renames a finished temporary folder), so a run killed while saving has lost nothing it had.

Who only reads opens `SavedCheckpoints`, which changes nothing, beside a run that is saving too.
`Checkpoints` is for the one that trains: it removes what a killed run left unfinished.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from orbax.checkpoint import checkpoint_manager
from orbax.checkpoint import v1 as ocp

from flaxcnn.errors import UserError
from flaxcnn.tasks.task import Metric
from flaxcnn.training.sharding import count_processes
from flaxcnn.training.state import TrainState, hash_layout, hash_tree

_SPACE_FOR_METADATA = 2**18  # bytes, of a checkpoint beside its arrays
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
_UNRATED = (False, 0.0)  # the score of a checkpoint that was not validated
History = list[dict[str, float]]  # one row of validation metrics per epoch

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs each step of each save


class SavedCheckpoints:
    """The complete checkpoints in a folder, which need not exist. Reading changes nothing in it.

    `monitor` says which metric of validation decides, and whether its largest or its smallest value
    is the best; NaN is worse than any number. Of equals the later is better.
    """

    def __init__(self, directory: Path, monitor: Metric):
        self._directory, self._monitor = directory, monitor
        self._damaged: set[int] = set()  # as far as tried
        self._opened = _without_patterns(self, directory.absolute())

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints there are now, oldest first."""
        return sorted(int(name) for name in self._names() if name.isascii() and name.isdecimal())

    def best_step(self) -> int | None:
        """The step with the best validation metric; the latest if none was validated."""
        return next(iter(self._rank("best")), None)

    def restore_latest(self, abstract: TrainState) -> tuple[int, TrainState, History] | None:
        """The newest checkpoint that is whole, as (step, state, history); None if there is none.

        A damaged one is reported on stderr and left alone (the run overwrites it when it gets
        there again), and the one before is tried.

        Raises:
            UserError: there are some, and none can be read, or one is whole and has another
                layout: starting anew would overwrite what can perhaps still be saved.
        """
        return self._restore_first("last", abstract)

    def restore_best(self, abstract: TrainState) -> tuple[int, TrainState, History] | None:
        """As `restore_latest`, the best one first; those that were not validated come last."""
        return self._restore_first("best", abstract)

    def _restore_first(
        self, which: str, abstract: TrainState
    ) -> tuple[int, TrainState, History] | None:
        # Listed again after each try: a run may have replaced what is read here meanwhile.
        while untried := [step for step in self._rank(which) if step not in self._damaged]:
            try:
                return untried[0], *self.restore(untried[0], abstract)
            except _DamagedError as error:
                self._damaged.add(untried[0])
                if self._path(untried[0]).exists():
                    print(f"{error}; trying another", file=sys.stderr)
        found = [n for n in self._names() if not n.startswith(".") and _UNFINISHED not in n]
        if found:
            raise UserError(
                f"no checkpoint in {self._directory} can be read ({', '.join(sorted(found)[:5])}): "
                "bring one back from a copy, or delete that folder to start the run anew"
            )
        return None

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, History]:
        """The state saved at `step`, as NumPy arrays, to be placed on any number of devices.

        Raises UserError if the checkpoint is damaged, or of another network or version.
        """
        abstract = _without_typed_keys(abstract)
        # NumPy arrays as the target: what is read need not fit the devices it was saved from.
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
        path = str(self._opened / str(step))
        with _damage_named(step), _alone():
            metadata: Any = ocp.metadata(path, "state").custom_metadata
            # Every version wrote the first; orbax gives {} where the file is lost.
            sha256, layout = metadata["sha256"], metadata.get("layout")
        if layout != hash_layout(abstract):
            raise UserError(
                f"checkpoint {step} was written by another version of flaxcnn or of optax, whose "
                "training state has other parts; that version can read it"
            )
        with _damage_named(step), _alone():
            saved: Any = ocp.metadata(path, "state").metadata
            # What an old version did not have of a state is None here, as the layouts are equal.
            parts = {name: part for name, part in vars(target).items() if name in saved}
            loaded: Any = ocp.load(path, parts, checkpointable_name="state")
            state: Any = target.replace(**loaded)
            if hash_tree(state) != sha256:
                raise ValueError("its SHA-256 is not the one it was saved with")
        return _with_typed_keys(state), metadata["history"]

    def read_hash(self, step: int) -> str:
        """The SHA-256 that the state was saved with at `step`; what was saved is not compared."""
        with _damage_named(step), _alone():
            metadata: Any = ocp.metadata(str(self._opened / str(step)), "state").custom_metadata
            return metadata["sha256"]

    def _rank(self, which: str) -> list[int]:
        """The steps, the "last" or the "best" first."""
        if which == "last":
            return self.steps[::-1]
        scores = {step: self._score(self._read_metrics(step)) for step in self.steps}
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def _read_metrics(self, step: int) -> dict[str, float]:
        """What validation measured at `step`; {} if nothing, or if it cannot be read."""
        try:
            return json.loads((self._path(step) / "metrics" / "metrics").read_text())
        except (OSError, ValueError):
            return {}

    def _score(self, metrics: Mapping[str, float]) -> tuple[bool, float]:
        """The larger the better: without metrics, then NaN, then what was measured."""
        value = metrics.get(self._monitor.name)
        if value is None:
            return _UNRATED
        sign = 1 if self._monitor.best == "max" else -1
        return True, -math.inf if math.isnan(value) else sign * value

    def _names(self) -> list[str]:
        return os.listdir(self._directory) if self._directory.is_dir() else []

    def _path(self, step: int) -> Path:
        return self._directory / str(step)


class Checkpoints(SavedCheckpoints):
    """The checkpoints of one run: the last `keep_last` and the best `keep_best` by `monitor`.

    With `keep_every`, steps, also the first at or after each multiple of it. Only for who holds the
    lock of the run's folder. `on_saved` is called, in the background, each time that one has been
    written.
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int,
        keep_best: int,
        monitor: Metric,
        keep_every: int | Fraction = 0,
        on_saved: Callable[[], object] = lambda: None,
    ):
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, monitor)
        self._keep_last, self._keep_best, self._keep_every = keep_last, keep_best, keep_every
        self._on_saved = on_saved
        self.longest_save = 0.0  # seconds, of those that have been written
        with _alone(), _folder_is_there():
            self._checkpointer = ocp.training.Checkpointer(
                str(self._opened),
                preservation_policy=self,
                cleanup_tmp_directories=True,
                lightweight_initialize=True,  # else damaged metrics of one step refuse all of them
            )
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of orbax's checkpoints to keep; it asks after each save.

        Those found damaged count for nothing, and stay until the run is past them.
        """
        scores = {
            c.step: self._score(c.metrics or self._read_metrics(c.step))
            for c in checkpoints
            if c.step not in self._damaged
        }
        rated = [step for step, score in scores.items() if score > _UNRATED]
        best = sorted(rated, key=lambda step: (scores[step], step), reverse=True)[: self._keep_best]
        last = sorted(scores)[-self._keep_last :]
        kept = {*best, *last, *(step for step in self._damaged if step > last[-1])}
        if self._keep_every:
            # The later ones first, so that of each multiple the earliest stays.
            passed = {step // self._keep_every: step for step in sorted(scores, reverse=True)}
            kept |= {step for multiple, step in passed.items() if multiple}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def save(
        self,
        step: int,
        state: TrainState,
        history: History,
        *,
        validated: bool,
        on_hash: Callable[[str], object] | None = None,
    ) -> None:
        """Starts writing `state` in the background, after the save before it has ended.

        `validated`: the last row of `history` was measured at this very step, so that the
        checkpoint may be chosen as the best. `on_hash` is given the SHA-256 of the state, in the
        background thread, before there is a checkpoint of it.
        """
        self.wait()
        started = time.monotonic()
        # Copies of both: the next step donates the buffers that are being written, the next
        # validation adds a row to the history.
        history = [dict(row) for row in history]
        state = jax.device_get(_without_typed_keys(state))
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        arguments = step, state, history, validated, started, on_hash
        self._pending = self._executor.submit(self._write, *arguments)

    def _write(
        self,
        step: int,
        state: TrainState,
        history: History,
        validated: bool,
        started: float,
        on_hash: Callable[[str], object] | None,
    ) -> None:
        self._damaged.discard(step)
        hashes = {"sha256": hash_tree(state), "layout": hash_layout(state)}
        if on_hash is not None:
            on_hash(hashes["sha256"])
        metrics: Any = history[-1] if validated else None
        metadata: Any = {"history": history, **hashes}
        self._checkpointer.save_checkpointables(
            step,
            {"state": state},
            force=True,
            overwrite=True,
            metrics=metrics,
            custom_metadata=metadata,
        )
        self.longest_save = max(self.longest_save, time.monotonic() - started)
        self._on_saved()

    def _check_space(self, size: int) -> None:
        """Raises OSError before a save that cannot end well: orbax's own end is many tracebacks."""
        free = shutil.disk_usage(self._directory).free
        if free < size + _SPACE_FOR_METADATA:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wait(self) -> None:
        """Returns when every save has been written. Raises what went wrong in the last."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the save under way and lets go of the directory."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._checkpointer.close()


class _DamagedError(UserError):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _damage_named(step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever orbax and tensorstore raise on damaged files
        reason = str(error).strip().split("\n")[0][:200]
        raise _DamagedError(f"checkpoint {step} is damaged: {reason}") from error


def _alone() -> Any:
    """What makes orbax wait for no other process: the first has all of the state, and writes it.

    By default it waits by a collective of the devices, which must not run beside a step.
    """
    if count_processes() == 1:
        return contextlib.nullcontext()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    return ocp.Context(multiprocessing_options=options)


def _folder_is_there() -> Any:
    """What makes orbax's manager not create its folder, which it refuses to do for one process.

    Version 1 hands on all options of the manager but this one.
    """
    if count_processes() == 1:
        return contextlib.nullcontext()
    options = functools.partial(checkpoint_manager.CheckpointManagerOptions, create=False)
    return mock.patch.object(checkpoint_manager, "CheckpointManagerOptions", options)


def _without_typed_keys(state: TrainState) -> TrainState:
    """Key data is saved as uint32, which every version of orbax reads."""
    if isinstance(state.key, jax.ShapeDtypeStruct):
        return state.replace(key=jax.eval_shape(jax.random.key_data, state.key))
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_keys(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.wrap_key_data(state.key))


def _without_patterns(owner: object, directory: Path) -> Path:
    """`directory` by a name in which orbax's glob finds no pattern, as long as `owner` lives.

    In a folder called [lr=0.1] orbax would find nothing of what it has just written.
    """
    if not any(character in str(directory) for character in "*?["):
        return directory
    folder = tempfile.mkdtemp(prefix="flaxcnn-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder, "checkpoints")
    link.symlink_to(directory, target_is_directory=True)
    return link
