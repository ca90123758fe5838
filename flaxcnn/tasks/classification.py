"""Classification: one label per image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.tasks.losses import Loss, cross_entropy


@dataclasses.dataclass(frozen=True)
class Classification:
    """The classes of a data set and the loss to train them with.

    Logits are float32 [N, outputs], labels int32 [N] in 0..classes-1. A network has one output per
    class; for two classes it may have one, the logit of class 1.
    """

    class_names: tuple[str, ...]
    loss: Loss = cross_entropy  # `losses.make_loss`: (logits, labels) -> [N]
    class_weights: tuple[float, ...] = ()  # of `losses.compute_class_weights`; (): all 1

    def check_outputs(self, num_outputs: int) -> None:
        """Raise UserError if a network with `num_outputs` logits cannot name these classes."""
        classes = len(self.class_names)
        if num_outputs != classes and (num_outputs, classes) != (1, 2):
            alternative = " (or 1)" if classes == 2 else ""
            raise UserError(
                f"model.kwargs.num_classes: the network has {num_outputs} outputs and the data "
                f"set {classes} classes; it must be {classes}{alternative}"
            )

    def metrics(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Per-example float32 [N]: `loss`, `accuracy` (0 or 1), `top5_accuracy` above 5 classes.

        Averages over any set of examples are the metrics of that set.
        """
        predictions, _ = self.predict(logits)
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

    def weigh(self, losses: jax.Array, labels: jax.Array) -> jax.Array:
        """What training minimises the mean of: per-example losses [N] times their class's weight.

        `metrics` stay unweighted, so that runs can be compared. The mean is over the batch's size,
        not its weights: the same however a batch is divided among devices or micro-batches.
        """
        if not self.class_weights:
            return losses
        weights = jnp.asarray(self.class_weights, losses.dtype)
        return losses * jnp.take(weights, labels, mode="clip")

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Float32 [N, classes], rows summing to 1: softmax, or both sides of one sigmoid."""
        if logits.shape[-1] == 1:
            return jax.nn.sigmoid(jnp.concatenate([-logits, logits], axis=-1))
        return jax.nn.softmax(logits)

    def predict(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The most probable class, int32 [N], and its probability, float32 [N].

        Where a logit is NaN or infinity there is none: the class is -1, which is right for no
        label, and the probability NaN.
        """
        both = jnp.concatenate([-logits, logits], axis=-1) if logits.shape[-1] == 1 else logits
        known = jnp.isfinite(both.max(-1))  # of a NaN, argmax would take the place
        label = jnp.where(known, jnp.argmax(both, axis=-1), -1).astype(jnp.int32)
        return label, jnp.where(known, self.probabilities(logits).max(-1), jnp.nan)

    def report(
        self,
        labels: np.ndarray,
        predictions: np.ndarray,
        train_images: Sequence[int] = (),
        train_draws: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Accuracy, and precision, recall and F1 of every class, as JSON-ready numbers in 0..1.

        `train_images` and `train_draws`, where given, stand beside them: per class the images of
        the training split, and how many an epoch showed.

        A class that never occurs or is never predicted has zeros, and counts in the macro average
        (the plain mean over classes), as in scikit-learn with `zero_division=0`.
        """
        counts = count_confusions(labels, predictions, len(self.class_names))
        right, predicted = np.diag(counts), counts.sum(axis=0)
        support = np.bincount(labels, minlength=len(counts))
        columns = {
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(predicted + support, 1),
        }
        trained = {"train_images": train_images, "train_draws": train_draws}
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


def count_confusions(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count the examples of each true class (row) predicted as each class (column), int64.

    Those predicted as none (-1) are in no column.
    """
    counts, some = np.zeros((classes, classes), np.int64), predictions >= 0
    np.add.at(counts, (labels[some], predictions[some]), 1)
    return counts


def format_report(report: dict[str, Any]) -> str:
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
