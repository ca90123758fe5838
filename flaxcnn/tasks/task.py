"""What a task is: all that the engine does not know of labels, boxes or masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from flaxcnn.data.splits import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Array = jax.Array


class Metric(NamedTuple):
    """A figure that runs are compared by: the name it has in rows of metrics.jsonl."""

    name: str
    best: str  # "max" or "min"
    unit: str = ""  # "%": a share in 0..1, drawn as percent


@dataclass(frozen=True)
class Setting:
    """What a task is made from, beside its own settings: the data set of the run."""

    class_names: tuple[str, ...]  # () where targets have no classes
    image_shape: tuple[int, ...]  # height, width, channels
    train_images: tuple[int, ...] = ()  # of each class in the training split, and how often an
    train_draws: tuple[int, ...] = ()  # epoch shows them; () where that is not known
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)  # `Task.count`


@dataclass(frozen=True)
class Examples:
    """What an evaluation kept of each example of a split, and who asks for them by number."""

    arrays: Mapping[str, np.ndarray]  # of `Task.predict` and `Task.expected`, each [N, ...]
    names: Sequence[str]  # paths of files, or numbers
    split: str
    load: Callable[[np.ndarray], np.ndarray]  # indices -> images uint8 [n, H, W, C]


class Task(Protocol):
    """Losses, metrics, predictions, report and pictures; `outputs` are what the network returns.

    Targets are a pytree of arrays with leading axis N, of static shapes, and only the task looks
    inside. All up to `answer` is traced, inside jit; the rest runs on the host.
    """

    monitor: ClassVar[Metric]  # best checkpoint, early stopping, the figure of a run
    pictures: ClassVar[tuple[str, ...]]  # files that `draw` makes, in the folder of a run
    places: ClassVar[bool] = False  # whether targets move with the image (`data/targets.py`)
    listed: ClassVar[int] = 5  # entries of an answer that `flaxcnn predict` lists
    nothing: ClassVar[str] = "no answer: the network's output for it is not finite"  # where none is
    background: ClassVar[str] = ""  # the last row and column of `confusion`, if they are no class

    @staticmethod
    def count(split: Split, classes: int) -> dict[str, list[int]]:
        """What `make` needs to know of the training split, as numbers; saved with the run.

        Raises UserError for targets of another task.
        """
        return {}

    def num_outputs(self) -> int:
        """The network's `num_classes`, unless the config gives another."""
        ...

    def check(self, outputs: Any) -> None:
        """Raises UserError if a network cannot do the task; `outputs` are shapes, of N = 1."""
        ...

    def inputs(self, targets: Any) -> tuple[Any, ...]:
        """More arguments of the network in training: (), or the boxes of a two-stage detector."""
        return ()

    def losses(self, outputs: Any, targets: Any) -> Array:
        """What training minimises the mean of, float32 [N]: all weights are in here."""
        ...

    def measure(self, outputs: Any, targets: Any) -> dict[str, Array]:
        """Metrics, of which "loss" is one; those of a split are the means over its examples.

        Each float32 [N] or, of what is large (a confusion matrix), [N, ...]: such a one is summed
        where it is made, and reaches `report` alone.
        """
        ...

    def predict(self, outputs: Any) -> dict[str, Array]:
        """By name arrays [N, ...] of fixed sizes, kept of every example of a split."""
        ...

    def expected(self, targets: Any) -> dict[str, Array]:
        """What `predict` should have said, by other names, [N, ...]: kept beside it."""
        ...

    def answer(self, outputs: Any) -> Any:
        """What is said of new images: a pytree of arrays [N, ...]."""
        ...

    def describe(self, answer: Any, most: int) -> list[dict[str, Any]]:
        """The answer for one image, JSON-ready: up to `most` entries, the surest first."""
        ...

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """An entry of `describe` as a line."""
        ...

    def annotate(self, image: np.ndarray, answer: Any) -> np.ndarray | None:
        """An image uint8 [H, W, C] with an answer about it drawn on it, [H, W, 3]; None: nothing.

        The answer is of this size (`fit_answer`).
        """
        return None

    def mask(self, answer: Any) -> "Image | None":
        """The answer as a PNG's pixels, where it is a class for each of them; None: it is not."""
        return None

    def fit_answer(self, answer: Any, matrix: np.ndarray, size: tuple[int, int]) -> Any:
        """The answer for one image, of the size that the network sees, where `matrix` takes it.

        `matrix` is [3, 3] (`images.fit_matrix`, inverted), `size` (height, width) of the image.
        """
        return answer

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The figures of a split, JSON-ready, from its metrics and what was kept of examples.

        `monitor` is one of the metrics, or a number of the report.
        """
        ...

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """A report as the table for a terminal."""
        ...

    def draw(self, file: str, examples: Examples) -> "Figure":
        """The picture that goes to `file`, one of `pictures`."""
        ...

    # What `flaxcnn report` shows beside `report` and the pictures, where examples have classes.

    def labels(self, arrays: Mapping[str, np.ndarray]) -> "tuple[np.ndarray, np.ndarray] | None":
        """The true and the predicted class of each example, int [N], -1 for none.

        From what was kept of them; None where an example is not of one class.
        """
        return None

    def confusion(
        self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> np.ndarray | None:
        """How often each class (row) was taken for each class (column), int64 [C, C], or None.

        Of a split whose `report` it is. Kept of every validation.
        """
        return None

    # What a study shows of cases side by side, each of several runs.

    def average(self, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over the reports of a case's runs, JSON-ready."""
        return {}

    def format_cases(self, cases: Mapping[str, Mapping[str, Any]]) -> str:
        """The cases' `average` as a table in Markdown; "" for none."""
        return ""

    def draw_cases(
        self, cases: Mapping[str, Sequence[Mapping[str, np.ndarray]]]
    ) -> "Figure | None":
        """One picture of what the runs of each case predicted; None for none."""
        return None
