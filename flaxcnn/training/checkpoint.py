"""The one file that knows about orbax: saves and restores a `TrainState`, whole or not at all.

A checkpoint holds the state, the validation history up to its step, and two SHA-256: of the state's
bytes, and of its layout, by which one of another version is told from a damaged one. It is written
in the background and appears under its name only when complete (orbax renames a finished temporary
folder), so a run killed while saving has lost nothing it had.
"""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flaxcnn.errors import UserError
from flaxcnn.training.state import TrainState, hash_layout, hash_tree

_SPACE_FOR_METADATA = 2**18  # bytes, of a checkpoint beside its arrays
History = list[dict[str, float]]  # one row of validation metrics per epoch

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs each step of each save


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` and the best `keep_best` by `monitor`.

    `monitor` is "accuracy" (higher is better) or "loss" (lower). Of equals the later is better.
    """

    def __init__(self, directory: Path, keep_last: int, keep_best: int, monitor: str):
        policies: Any = ocp.training.preservation_policies
        sign = -1 if monitor == "loss" else 1
        self._score = lambda metrics: sign * metrics[monitor]
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_last),
                    policies.BestN(
                        get_metric_fn=self._score,
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, history: History, *, validated: bool) -> None:
        """Starts writing `state` in the background, after the save before it has ended.

        `validated`: the last row of `history` was measured at this very step, so that the
        checkpoint may be chosen as the best.
        """
        # Copies of both: the next step donates the buffers that are being written, the next
        # validation adds a row to the history.
        history = [dict(row) for row in history]
        metrics: Any = history[-1] if validated else None
        state = jax.device_get(_without_typed_keys(state))
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        hashes = {"sha256": hash_tree(state), "layout": hash_layout(state)}
        metadata = {"history": history, **hashes}
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": state},
            force=True,
            overwrite=True,
            metrics=metrics,
            custom_metadata=metadata,
        )

    def _check_space(self, size: int) -> None:
        """Raises OSError before a save that cannot end well: orbax's own end is many tracebacks."""
        free = shutil.disk_usage(self._directory).free
        if free < size + _SPACE_FOR_METADATA:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def restore_latest(self, abstract: TrainState) -> tuple[int, TrainState, History] | None:
        """The newest checkpoint that is whole, as (step, state, history); None if there is none.

        A damaged one is reported on stderr and left alone (the run overwrites it when it gets
        there again), and the one before is tried.

        Raises:
            UserError: one that is whole has another layout: starting anew would overwrite it.
        """
        for step in sorted(self.steps, reverse=True):
            try:
                return step, *self.restore(step, abstract)
            except _DamagedError as error:
                print(f"{error}; trying the one before", file=sys.stderr)
        return None

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, History]:
        """The state saved at `step`, as NumPy arrays, to be placed on any number of devices.

        Raises UserError if the checkpoint is damaged, or of another network or version.
        """
        abstract = _without_typed_keys(abstract)
        # NumPy arrays as the target: what is read need not fit the devices it was saved from.
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
        with _damage_named(step):
            metadata: Any = self._checkpointer.metadata(step).custom_metadata
            # Every version wrote the first; orbax gives {} where the file is lost.
            sha256, layout = metadata["sha256"], metadata.get("layout")
        if layout != hash_layout(abstract):
            raise UserError(
                f"checkpoint {step} was written by another version of flaxcnn or of optax, whose "
                "training state has other parts; that version can read it"
            )
        with _damage_named(step):
            state = self._checkpointer.load(step, target)
            if hash_tree(state) != sha256:
                raise ValueError("its SHA-256 is not the one it was saved with")
        return _with_typed_keys(state), metadata["history"]

    @property
    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def best_step(self) -> int | None:
        """The step with the best validation metric; the latest if none was validated."""
        rated = [c for c in self._checkpointer.checkpoints if c.metrics is not None]
        if rated:
            return max(rated, key=lambda c: (self._score(c.metrics), c.step)).step
        return max(self.steps, default=None)

    def wait(self) -> None:
        """Returns when every save has been written."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the saves under way and lets go of the directory."""
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


def _without_typed_keys(state: TrainState) -> TrainState:
    """Key data is saved as uint32, which every version of orbax reads."""
    if isinstance(state.key, jax.ShapeDtypeStruct):
        return state.replace(key=jax.eval_shape(jax.random.key_data, state.key))
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_keys(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.wrap_key_data(state.key))
