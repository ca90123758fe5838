"""Classification: one label per image."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment import Mixed, for_targets
from flaxcnn.errors import UserError
from flaxcnn.models._network import Outputs
from flaxcnn.tasks.classification_pictures import (
    choose_examples,
    count_confusions,
    draw_case_confusions,
    draw_confusion_matrix,
    draw_predictions,
)
from flaxcnn.tasks.figures import format_markdown
from flaxcnn.tasks.losses import Loss, compute_class_weights, cross_entropy, make_loss
from flaxcnn.tasks.task import Examples, Metric, Setting, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = jax.Array
Labels = Array | Mixed

_SCORES = ("precision", "recall", "f1")  # of a class in a report


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """The classes of a data set and the loss to train them with.

    A network gives logits, float32 [N, outputs], or in training `Outputs` with auxiliary ones; it
    has one output per class, or for two classes it may have one, the logit of class 1. Targets are
    labels, int32 [N] in 0..classes-1; in training they may be mixed.
    """

    monitor: ClassVar[Metric] = Metric("accuracy", "max", "%")
    pictures: ClassVar[tuple[str, ...]] = ("confusion_matrix.png", "predictions.png")

    class_names: tuple[str, ...]
    loss: Loss = cross_entropy  # `losses.make_loss`: (logits, labels) -> [N]
    class_weights: tuple[float, ...] = ()  # of `losses.compute_class_weights`; (): all 1
    auxiliary_weight: float = 0.3  # what the losses of auxiliary classifiers count
    train_images: tuple[int, ...] = ()  # per class, for the report; see `Setting`
    train_draws: tuple[int, ...] = ()

    @classmethod
    def make(
        cls,
        setting: Setting,
        *,
        name: str,
        label_smoothing: float,
        focal_gamma: float,
        class_weights: str,
        effective_beta: float,
        auxiliary_weight: float,
    ) -> "Classification":
        """From the fields of the config's `loss`. Raises UserError as `make_loss`."""
        weights = ()
        if class_weights != "none" and setting.train_draws:
            counts = np.array(setting.train_draws)
            weights = tuple(compute_class_weights(class_weights, counts, effective_beta).tolist())
        return cls(
            setting.class_names,
            make_loss(name=name, label_smoothing=label_smoothing, focal_gamma=focal_gamma),
            weights,
            auxiliary_weight,
            setting.train_images,
            setting.train_draws,
        )

    def num_outputs(self) -> int:
        """One per class."""
        return len(self.class_names)

    def check(self, outputs: Any) -> None:
        """Raises UserError if the network's number of logits cannot name these classes."""
        num_outputs, classes = outputs.shape[-1], len(self.class_names)
        if num_outputs != classes and (num_outputs, classes) != (1, 2):
            alternative = " (or 1)" if classes == 2 else ""
            raise UserError(
                f"model.kwargs.num_classes: the network has {num_outputs} outputs and the data "
                f"set {classes} classes; it must be {classes}{alternative}"
            )

    def losses(self, outputs: Array | Outputs, targets: Labels) -> Array:
        """See `Task`: with class weights, auxiliary classifiers and mixed labels in it.

        Metrics stay unweighted, so that runs can be compared. The mean is over the batch's size,
        not its weights: the same however a batch is divided among devices or micro-batches.
        """
        logits, auxiliary = _separate(outputs)

        def weighted(logits: Array) -> Array:
            return for_targets(lambda x: self._weigh(self.loss(logits, x), x), targets)

        total = weighted(logits)
        for other in auxiliary:
            total += self.auxiliary_weight * weighted(other)
        return total

    def _weigh(self, losses: Array, labels: Array) -> Array:
        if not self.class_weights:
            return losses
        weights = jnp.asarray(self.class_weights, losses.dtype)
        return losses * jnp.take(weights, labels, mode="clip")

    def measure(self, outputs: Array | Outputs, targets: Labels) -> dict[str, Array]:
        """`loss`, `accuracy` (0 or 1), `top5_accuracy` above 5 classes; each float32 [N].

        Those of the main classifier; of mixed examples, for both labels by their shares.
        """
        logits, _ = _separate(outputs)
        return for_targets(lambda labels: self._measure(logits, labels), targets)

    def _measure(self, logits: Array, labels: Array) -> dict[str, Array]:
        predictions = self.predict(logits)["label"]
        metrics = {
            "loss": self.loss(logits, labels),
            "accuracy": (predictions == labels).astype(jnp.float32),
        }
        if len(self.class_names) > 5:
            # Elementwise rather than `lax.top_k`, which would gather a batch split over devices.
            # Of equal logits the first wins, as in argmax.
            true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
            later = labels[:, None] <= jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
            beaten = (true > logits) | ((true == logits) & later)
            within = ((~beaten).sum(-1) < 5) & (predictions >= 0)
            metrics["top5_accuracy"] = within.astype(jnp.float32)
        return metrics

    def answer(self, outputs: Array) -> Array:
        """Probabilities, float32 [N, classes]: softmax, or both sides of one sigmoid."""
        if outputs.shape[-1] == 1:
            return jax.nn.sigmoid(jnp.concatenate([-outputs, outputs], axis=-1))
        return jax.nn.softmax(outputs)

    def predict(self, outputs: Array) -> dict[str, Array]:
        """The most probable class, `label` int32 [N], and its `probability`, float32 [N].

        Where a logit is NaN or infinity there is none: the class is -1, which is right for no
        label, and the probability NaN.
        """
        logits = outputs
        both = jnp.concatenate([-logits, logits], axis=-1) if logits.shape[-1] == 1 else logits
        known = jnp.isfinite(both.max(-1))  # of a NaN, argmax would take the place
        label = jnp.where(known, jnp.argmax(both, axis=-1), -1).astype(jnp.int32)
        probability = jnp.where(known, self.answer(logits).max(-1), jnp.nan)
        return {"label": label, "probability": probability}

    def expected(self, targets: Array) -> dict[str, Array]:
        """`true_label`, int32 [N]."""
        return {"true_label": targets}

    def describe(self, answer: np.ndarray, most: int) -> list[dict[str, Any]]:
        """The most probable classes, `class` and `probability`; none of what is not finite."""
        if not np.isfinite(answer).all():
            return []
        order = (-answer).argsort(kind="stable")[:most]
        return [{"class": self.class_names[i], "probability": float(answer[i])} for i in order]

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """As ` 97.25%  cat`."""
        return f"{entry['probability']:7.2%}  {entry['class']}"

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Accuracy, and precision, recall and F1 of every class, as JSON-ready numbers in 0..1.

        Beside them, where it is known, per class the images of the training split, and how many an
        epoch showed.

        A class that never occurs or is never predicted has zeros, and counts in the macro average
        (the plain mean over classes), as in scikit-learn with `zero_division=0`.
        """
        labels, predictions = arrays["true_label"], arrays["label"]
        counts = count_confusions(labels, predictions, len(self.class_names))
        right, predicted = np.diag(counts), counts.sum(axis=0)
        support = np.bincount(labels, minlength=len(counts))
        columns = {
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(predicted + support, 1),
        }
        trained = {"train_images": self.train_images, "train_draws": self.train_draws}
        classes = [
            {"name": name, **{key: float(column[i]) for key, column in columns.items()}}
            | {"support": int(support[i])}
            | {key: column[i] for key, column in trained.items() if len(column)}
            for i, name in enumerate(self.class_names)
        ]
        return {
            "accuracy": float(right.sum() / max(len(labels), 1)),
            "images": len(labels),
            "macro": {key: float(column.mean()) for key, column in columns.items()},
            "classes": classes,
        }

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """See `format_report`."""
        return format_report(report)

    def draw(self, file: str, examples: Examples) -> "Figure":
        """The confusion matrix, or images with their predictions, errors first."""
        arrays = examples.arrays
        labels, predictions = arrays["true_label"], arrays["label"]
        if file == "confusion_matrix.png":
            return draw_confusion_matrix(labels, predictions, self.class_names)
        shown = choose_examples(labels, predictions, arrays["probability"])
        wrong, count = int(np.sum(labels != predictions)), len(labels)
        return draw_predictions(
            examples.load(shown),
            labels[shown],
            predictions[shown],
            arrays["probability"][shown],
            self.class_names,
            title=f"{wrong} of {count} {examples.split} images wrong ({wrong / count:.2%})",
            names=[str(examples.names[index]) for index in shown],
        )

    def labels(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Task`."""
        return arrays["true_label"], arrays["label"]

    def confusion(self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Task` and `count_confusions`."""
        return count_confusions(*self.labels(arrays), len(self.class_names))

    def average(self, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`classes`: by name the means of precision, recall and f1."""
        return {
            "classes": {
                name: {
                    key: statistics.fmean(report["classes"][label][key] for report in reports)
                    for key in _SCORES
                }
                for label, name in enumerate(self.class_names)
            }
        }

    def format_cases(self, cases: Mapping[str, Mapping[str, Any]]) -> str:
        """Precision, recall and F1 of each class (row) in each case (column), up to 20 classes."""
        if len(self.class_names) > 20:
            return ""
        rows = [
            [name, *(_format_scores(case["classes"][name]) for case in cases.values())]
            for name in self.class_names
        ]
        return format_markdown(["class: precision, recall, F1", *cases], rows)

    def draw_cases(
        self, cases: Mapping[str, Sequence[Mapping[str, np.ndarray]]]
    ) -> "Figure | None":
        """The cases' confusion matrices, summed over their runs."""
        classes = len(self.class_names)
        counts = {
            case: sum(
                (count_confusions(a["true_label"], a["label"], classes) for a in runs),
                np.zeros((classes, classes), np.int64),
            )
            for case, runs in cases.items()
        }
        return draw_case_confusions(counts, self.class_names)


def _format_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{scores[key]:.2f}" for key in _SCORES)


def _separate(outputs: Array | Outputs) -> tuple[Array, tuple[Array, ...]]:
    return outputs if isinstance(outputs, Outputs) else (outputs, ())


def format_report(report: Mapping[str, Any]) -> str:
    """The table of `Classification.report` for a terminal.

    Above 30 classes only the 5 best and the 5 worst by F1 among those that occur.
    """
    classes = report["classes"]
    if len(classes) <= 30:
        groups = [("class", classes)]
    else:
        ranked = sorted((c for c in classes if c["support"]), key=lambda c: -c["f1"])
        groups = [("5 best classes", ranked[:5]), ("5 worst classes", ranked[5:][-5:])]
    trained = [key for key in ("train_images", "train_draws") if key in classes[0]]
    if len(trained) == 2 and all(c["train_images"] == c["train_draws"] for c in classes):
        trained.pop()  # each image was shown once
    names = [_shorten(c["name"]) for _, rows in groups for c in rows]
    width = max(map(len, [*names, "macro average", *(title for title, _ in groups)]))
    lines = []
    for title, rows in groups:
        lines.append(f"{title:<{width}}  precision  recall      f1  images")
        lines[-1] += "".join(f"  {key.replace('_', ' ')}" for key in trained)
        for c in rows:
            lines.append(_row(_shorten(c["name"]), c, c["support"], width))
            lines[-1] += "".join(f"  {c[key]:>{len(key)}}" for key in trained)
        lines.append("")
    lines.append(_row("macro average", report["macro"], report["images"], width))
    lines.append(f"{'accuracy':<{width}}  {report['accuracy']:>9.4f}")
    return "\n".join(lines)


def _row(name: str, scores: dict[str, float], images: int, width: int) -> str:
    precision, recall, f1 = scores["precision"], scores["recall"], scores["f1"]
    return f"{name:<{width}}  {precision:>9.4f}  {recall:>6.4f}  {f1:>6.4f}  {images:>6}"


def _shorten(name: str, limit: int = 32) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
