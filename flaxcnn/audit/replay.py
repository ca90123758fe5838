"""Calls of a run, done again from one of its checkpoints: for `verify` and `diff`."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.training.checkpoint import History, SavedCheckpoints
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.facts import Facts, reload_data
from flaxcnn.training.logger import Row, read_rows
from flaxcnn.training.loop import Loop
from flaxcnn.training.parts import find_monitor
from flaxcnn.training.stages import find_run
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.workdir import Workdir

Rows = dict[tuple[str, int], Row]  # by split and step

_NEEDED = {  # of each kind of row
    "train": {"step", "loss"},
    "validation": {"step", "loss"},
    "state": {"step", "sha256", "rows_sha256"},
}


@dataclasses.dataclass(frozen=True)
class PastRun:
    """What a run has left. Reading changes nothing in its folder."""

    folder: Workdir
    experiment: Experiment
    saved: SavedCheckpoints
    lines: list[Row]  # of metrics.jsonl, as they are

    @cached_property
    def rows(self) -> Rows:
        """The rows of "train", "validation" and "state"."""
        return {(row["split"], row["step"]): row for row in self.lines}

    @cached_property
    def hashes(self) -> dict[int, str]:
        """The SHA-256 of the state by step, as metrics.jsonl has them."""
        return {row["step"]: row["sha256"] for row in self.lines if row["split"] == "state"}

    def restore(self, step: int) -> tuple[TrainState, History]:
        """The state at `step`, 0 or that of a checkpoint, with the validations up to it.

        Raises UserError if the checkpoint cannot be read.
        """
        if step == 0:
            return self.experiment.initial_state(), []
        return self.saved.restore(step, self._abstract)

    @cached_property
    def _abstract(self) -> TrainState:
        return self.experiment.abstract_state()


def open_run(path: str | Path) -> PastRun:
    """The run in the folder `path`, with its data set.

    Raises UserError if there is none, or if its data or its metrics.jsonl cannot be read.
    """
    folder = Workdir(find_run(path))
    config, facts = folder.config(), Facts.read(folder)
    try:
        lines = read_rows(folder, whole=True)
        for row in lines:
            missing = _NEEDED.get(row.get("split", ""), {"split"}) - row.keys()
            if missing:
                raise ValueError(f"a row without {', '.join(sorted(missing))}: {row}")
    except ValueError as error:
        raise UserError(f"{folder.metrics} is damaged: {error}") from error
    experiment = Experiment(config, reload_data(config, facts, folder), facts, folder.path)
    saved = SavedCheckpoints(folder.checkpoints, find_monitor(config))
    return PastRun(folder, experiment, saved, lines)


def to_host(state: TrainState) -> TrainState:
    """A copy of `state` as NumPy arrays, its key as uint32."""
    return jax.tree.map(np.array, state.replace(key=_key_data(state.key)))


def to_device(state: TrainState) -> TrainState:
    """What `to_host` was given, to be placed and used up."""
    return jax.tree.map(np.array, state).replace(key=jax.random.wrap_key_data(state.key))


def _key_data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


class Replay:
    """Does the calls of a run again, with the programs and in the order of the run itself.

    Compiled once, however many stretches are replayed.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._loop: Any = None
        self._rows: list[Row] = []

    def calls(
        self, start: int, state: TrainState, history: History
    ) -> Iterator[tuple[int, list[Row]]]:
        """The calls from step `start` on: the step that each ends at, and its rows.

        `state` (used up) and `history` are those at `start`, where a call has to begin. At the end
        of an epoch the validation is done again, too. Raises UserError where the loss is not
        finite.
        """
        self._experiment.use_features(state.variables)
        placed = self._experiment.parallel.replicate(state)
        if self._loop is None:
            self._loop = Loop(self._experiment, history, placed)
        loop = self._loop
        loop.state, loop.history = placed, history
        for end in loop.calls(start, self):
            if end % self._experiment.plan.steps_per_epoch == 0:
                row = loop.validate(end)
                self._rows += [{**row, "split": "validation"}] if row is not None else []
            rows, self._rows = self._rows, []
            yield end, rows

    def log_train(self, row: Row, steps: int, seconds: float | None, waited: float) -> None:
        """Called by the loop instead of a run's `Logger`."""
        self._rows.append({**row, "split": "train"})

    @property
    def state(self) -> TrainState:
        """The state at the end of the last call."""
        return self._experiment.parallel.unreplicate(self._loop.state)

    def hash_state(self) -> str:
        """The SHA-256 of `state`, as checkpoints and metrics.jsonl have it."""
        return hash_tree(self.state)
