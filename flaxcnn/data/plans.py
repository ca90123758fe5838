"""Plans: which examples each call of a run, or of an evaluation, sees. Pure functions.

What a step sees follows from the config and the step's number alone, so a run resumes from that.
"""

import dataclasses
import functools

import numpy as np

from flaxcnn.data.imbalance import Draws
from flaxcnn.data.permutation import permutation
from flaxcnn.errors import UserError

_TRAINING_ORDER = 1  # purpose of a permutation; 2 is holding out, 3 and 4 are of imbalance.py


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """The indices of each call of a run: `plan[i]` is int32 [steps, batch_size].

    Every epoch is a fresh permutation of the examples that `draws` gives, cut into whole batches;
    the rest of it is dropped. Calls start at multiples of `steps_per_call` within an epoch, so the
    last call of an epoch may be shorter. Raises UserError if an epoch is smaller than a batch.
    """

    draws: Draws  # with each example once, or as the data set's imbalance is answered
    batch_size: int
    steps_per_call: int
    epochs: int
    seed: int

    def __post_init__(self):
        if self.batch_size > len(self.draws):
            raise UserError(
                f"data.batch_size is {self.batch_size}, more than the {len(self.draws)} "
                "images of an epoch of the training split"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in an epoch."""
        return len(self.draws) // self.batch_size

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
        order = _epoch_order(self.draws, self.seed, epoch)
        return order[start * self.batch_size : stop * self.batch_size].reshape(stop - start, -1)


@functools.lru_cache(maxsize=2)  # the calls of an epoch follow each other
def _epoch_order(draws: Draws, seed: int, epoch: int) -> np.ndarray:
    shown = draws.epoch(seed, epoch)
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


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's part of a plan: the `part`-th of `parts` equal pieces of each batch.

    All parts side by side are the plan: no example is left out, none is loaded twice.
    """

    plan: TrainPlan | EvalPlan
    part: int
    parts: int

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, call: int) -> np.ndarray:
        return self._piece(self.plan[call])

    def mask(self, call: int) -> np.ndarray:
        """See `EvalPlan.mask`."""
        assert isinstance(self.plan, EvalPlan)
        return self._piece(self.plan.mask(call))

    def _piece(self, batches: np.ndarray) -> np.ndarray:
        return np.split(batches, self.parts, axis=1)[self.part]


Plan = TrainPlan | EvalPlan | Share
