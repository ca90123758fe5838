"""Exact evaluation of a network on one split."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxcnn.data.augment import View
from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.data.plans import EvalPlan
from flaxcnn.tasks.task import Task
from flaxcnn.training.sharding import Jit, Pmap
from flaxcnn.training.step import make_eval_call


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on a split of N examples."""

    task: Task
    means: dict[str, float]  # of the metrics that are one number per example
    large: dict[str, np.ndarray]  # means of the others
    arrays: dict[str, np.ndarray]  # of `Task.predict` and `Task.expected`, [N, ...]
    losses: np.ndarray  # [N]

    @cached_property
    def report(self) -> dict[str, Any]:
        """The task's report, JSON-ready."""
        return self.task.report(self.means | self.large, self.arrays)

    @property
    def confusion(self) -> np.ndarray | None:
        """See `Task.confusion`."""
        return self.task.confusion(self.report, self.arrays)

    @property
    def figures(self) -> dict[str, float]:
        """The means, and the task's own figure where it is one of the report."""
        name = self.task.monitor.name
        return self.means if name in self.means else {**self.means, name: self.report[name]}


class Evaluator:
    """Runs a network over one split: every example once, the last batch padded and masked.

    `feeder` has the split, of which `plan` says what each call sees. With `views`, every example is
    seen in each of them: the outputs are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        preprocess: Callable[[jax.Array], jax.Array],
        parallel: Jit | Pmap,
        feeder: Resident | Streaming,
        plan: EvalPlan,
        views: Sequence[View] = (),
    ):
        self._task, self._parallel, self._feeder, self._plan = task, parallel, feeder, plan
        self._arrays = parallel.replicate(feeder.arrays)
        call = make_eval_call(model, task, preprocess, feeder.batch, views)
        self._call = parallel.compile_eval(call)

    def __call__(self, variables: Any) -> Evaluation:
        """Measures the whole split; sums are exact, or in float64."""
        kept, added = [], []
        share: Any = self._parallel.share(self._plan)
        for index, items in enumerate(self._feeder.feed(share)):
            items = self._parallel.split((items, share.mask(index)))
            metrics, arrays, sums = self._call(variables, self._arrays, items)
            kept.append(jax.device_get((metrics, arrays)))
            added.append(jax.tree.map(lambda x: np.sum(x, 0, np.float64), jax.device_get(sums)))
        metrics, arrays = jax.tree.map(self._join, *kept)
        means: dict[str, Any] = {k: float(np.mean(v, dtype=np.float64)) for k, v in metrics.items()}
        large = jax.tree.map(lambda *parts: sum(parts) / self._plan.num_examples, *added)
        return Evaluation(self._task, means, large, arrays, metrics["loss"])

    def _join(self, *calls: np.ndarray) -> np.ndarray:
        """Arrays [K, batch, ...] of all calls -> one [N, ...], without the padding."""
        return np.concatenate([x.reshape(-1, *x.shape[2:]) for x in calls])[
            : self._plan.num_examples
        ]
