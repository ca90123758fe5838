"""Segmentation: a class for every pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.data.splits import ArraySplit, Split, map_chunks
from flaxcnn.data.targets import IGNORED, Mask, move_classes
from flaxcnn.errors import UserError
from flaxcnn.models._network import Outputs
from flaxcnn.tasks.classification_pictures import count_confusions
from flaxcnn.tasks.segmentation_pictures import color_classes, draw_masks, to_palette
from flaxcnn.tasks.task import Examples, Metric, Setting, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Array = jax.Array

CLASS_WEIGHTS = ("none", "median_frequency")
_SHOWN = 8  # images of a picture


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """The classes of pixels, and what each counts in the loss.

    A network gives logits for each pixel, float32 [N, H, W, classes], or in training `Outputs` with
    auxiliary ones. Targets are a `Mask`; its pixels of class 255 count nowhere. The loss of an
    image is the mean cross-entropy of its pixels, the figures are those of Long et al. 2015
    (arXiv:1411.4038), section 5, exact over the split.
    """

    monitor: ClassVar[Metric] = Metric("mean_iou", "max", "%")
    pictures: ClassVar[tuple[str, ...]] = ("predictions.png",)
    places: ClassVar[bool] = True

    class_names: tuple[str, ...]
    class_weights: tuple[float, ...] = ()  # of `median_frequency`; (): all 1
    auxiliary_weight: float = 0.5  # of each auxiliary head's loss, as in torchvision

    @classmethod
    def make(
        cls, setting: Setting, *, class_weights: str = "none", auxiliary_weight: float = 0.5
    ) -> "Segmentation":
        """From the fields of `task.kwargs`. Raises UserError for one that is wrong."""
        if class_weights not in CLASS_WEIGHTS:
            raise UserError(
                f"task.kwargs.class_weights must be one of {', '.join(CLASS_WEIGHTS)}, got "
                f"{class_weights!r}"
            )
        weights = ()
        if class_weights == "median_frequency":
            if not setting.counts:
                raise UserError(
                    "task.kwargs.class_weights: median_frequency counts the pixels of a training "
                    "split that is kept in memory: see data.resident_limit"
                )
            weights = tuple(median_frequency(**setting.counts).tolist())
        return cls(setting.class_names, weights, auxiliary_weight)

    @staticmethod
    def count(split: Split, classes: int) -> dict[str, list[int]]:
        """`pixels` of each class, and `pixels_of_images` in which it occurs; {} if streamed.

        Raises UserError for targets that are no masks.
        """
        _, targets = split.load(np.zeros(1, np.int64))
        if not isinstance(targets, Mask):
            raise UserError("task.name: segmentation needs data with masks, as masks:<path>")
        if not isinstance(split, ArraySplit):
            return {}

        def of_chunk(indices: np.ndarray) -> np.ndarray:
            masks = np.asarray(split.targets.classes)[indices].reshape(len(indices), -1)
            counts = np.stack([np.bincount(m, minlength=256)[:classes] for m in masks])
            known = counts.sum(axis=1, keepdims=True)
            return np.stack([counts.sum(axis=0), (known * (counts > 0)).sum(axis=0)])

        pixels, of_images = np.sum(
            list(map_chunks(of_chunk, len(split), "pixels of classes")), axis=0
        )
        return {"pixels": pixels.tolist(), "pixels_of_images": of_images.tolist()}

    def num_outputs(self) -> int:
        """One per class."""
        return len(self.class_names)

    def check(self, outputs: Any) -> None:
        """Raises UserError unless the network has a logit per class for each pixel."""
        classes = len(self.class_names)
        if outputs.ndim != 4 or outputs.shape[-1] != classes:
            raise UserError(
                f"model.name: segmentation needs outputs [N, height, width, {classes}], and the "
                f"network gives {list(outputs.shape)}: take one for segmentation, as fcn8s"
            )

    def losses(self, outputs: Array | Outputs, targets: Mask) -> Array:
        """See `Task`: with class weights and auxiliary heads in it."""
        logits, auxiliary = outputs if isinstance(outputs, Outputs) else (outputs, ())
        total = self._mean_loss(logits, targets, self.class_weights)
        for other in auxiliary:
            total += self.auxiliary_weight * self._mean_loss(other, targets, self.class_weights)
        return total

    def _mean_loss(self, logits: Array, targets: Mask, weights: tuple[float, ...] = ()) -> Array:
        labels, known = _labels(targets)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if weights:
            losses *= jnp.take(jnp.asarray(weights, losses.dtype), labels, mode="clip")
        return (losses * known).sum((1, 2)) / jnp.maximum(known.sum((1, 2)), 1)

    def measure(self, outputs: Array | Outputs, targets: Mask) -> dict[str, Array]:
        """`loss`, without weights, and `pixel_accuracy` of each image, [N]; `confusion` [N, C, C].

        A confusion matrix counts pixels: true classes are rows.
        """
        logits = outputs.logits if isinstance(outputs, Outputs) else outputs
        labels, known = _labels(targets)
        predicted = jnp.argmax(logits, axis=-1)
        classes = len(self.class_names)
        right = ((predicted == labels) * known).sum((1, 2))
        pairs = jnp.where(known > 0, labels * classes + predicted, classes**2)
        counts = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=classes**2 + 1))(pairs)
        return {
            "loss": self._mean_loss(logits, targets),
            "pixel_accuracy": right / jnp.maximum(known.sum((1, 2)), 1),
            "confusion": counts[:, :-1].reshape(-1, classes, classes),
        }

    def predict(self, outputs: Array) -> dict[str, Array]:
        """`classes`, uint8 [N, H, W]."""
        return {"classes": jnp.argmax(outputs, axis=-1).astype(jnp.uint8)}

    def expected(self, targets: Mask) -> dict[str, Array]:
        """`true_classes`, uint8 [N, H, W]; 255 is not known."""
        return {"true_classes": jnp.asarray(targets.classes)}

    def answer(self, outputs: Array) -> Any:
        """As `predict`."""
        return self.predict(outputs)

    def describe(self, answer: Mapping[str, np.ndarray], most: int) -> list[dict[str, Any]]:
        """The classes that cover most of what was seen: `class` and `share` of its pixels."""
        known = answer["classes"][answer["classes"] != IGNORED]
        counts = np.bincount(known, minlength=len(self.class_names))
        order = [i for i in (-counts).argsort(kind="stable")[:most] if counts[i]]
        total = counts.sum()
        return [{"class": self.class_names[i], "share": float(counts[i] / total)} for i in order]

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """As ` 47.25%  road`."""
        return f"{entry['share']:7.2%}  {entry['class']}"

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Figures in 0..1 of all pixels of the split.

        `pixel_accuracy`, `mean_accuracy`, `mean_iou` and `frequency_weighted_iou`, with
        `accuracy`, `iou` and pixels of each class. Means are over the classes that occur in the
        split; a class that is predicted and never occurs lowers the others' accuracy alone.
        """
        images = len(arrays["classes"])
        counts = np.rint(np.asarray(means["confusion"]) * images)
        return {"images": images, **measure_confusion(counts, self.class_names)}

    def confusion(self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Task`: of pixels."""
        true, known = arrays["true_classes"], arrays["true_classes"] != IGNORED
        return count_confusions(true[known], arrays["classes"][known], len(self.class_names))

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """Accuracy and IoU of each class, then the figures of all."""
        rows = report["classes"]
        width = max(len("frequency weighted IoU"), *(len(row["name"]) for row in rows))
        lines = [f"{'class':<{width}}  accuracy     IoU      pixels"]
        for row in rows:
            figures = "       -       -"
            if row["pixels"]:
                figures = f"{row['accuracy']:>8.4f}  {row['iou']:>6.4f}"
            lines.append(f"{row['name']:<{width}}  {figures}  {row['pixels']:>10,}")
        lines.append("")
        for name, key in (
            ("pixel accuracy", "pixel_accuracy"),
            ("mean accuracy", "mean_accuracy"),
            ("mean IoU", "mean_iou"),
            ("frequency weighted IoU", "frequency_weighted_iou"),
        ):
            lines.append(f"{name:<{width}}  {report[key]:>8.4f}")
        return "\n".join(lines)

    def draw(self, file: str, examples: Examples) -> "Figure":
        """Images, their masks and what was predicted, the worst images first."""
        true, predicted = examples.arrays["true_classes"], examples.arrays["classes"]
        known = true != IGNORED
        wrong = ((true != predicted) & known).mean((1, 2))
        shown = (-wrong).argsort(kind="stable")[:_SHOWN]
        return draw_masks(
            examples.load(shown),
            true[shown],
            predicted[shown],
            self.class_names,
            titles=[f"{examples.names[i]}: {wrong[i]:.1%} of pixels wrong" for i in shown],
        )

    def annotate(self, image: np.ndarray, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C] with its classes over it, uint8 [H, W, 3]."""
        return color_classes(image, answer["classes"])

    def mask(self, answer: Mapping[str, np.ndarray]) -> "Image":
        """Numbers of classes in their colours, as the masks of a folder are read; 255 is none."""
        return to_palette(answer["classes"])

    def fit_answer(
        self, answer: Mapping[str, np.ndarray], matrix: np.ndarray, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """See `Task`. Each pixel takes the class of the nearest; what was cut off has 255."""
        return {"classes": move_classes(answer["classes"], matrix, size)}


def _labels(targets: Mask) -> tuple[Array, Array]:
    """Classes int32 [N, H, W], 0 where they are not known, and float32 1 where they are."""
    classes = jnp.asarray(targets.classes)
    known = classes != IGNORED
    return jnp.where(known, classes, 0).astype(jnp.int32), known.astype(jnp.float32)


def measure_confusion(counts: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The figures of a confusion matrix [C, C] of pixels, true classes in rows, JSON-ready.

    Long et al. 2015, section 5: pixel accuracy, mean accuracy, mean IoU and frequency weighted IoU.
    """
    right, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    accuracy = right / np.maximum(true, 1)
    iou = right / np.maximum(true + predicted - right, 1)
    present, total = true > 0, max(counts.sum(), 1)
    return {
        "pixel_accuracy": float(right.sum() / total),
        "mean_accuracy": float(accuracy[present].mean()) if present.any() else 0.0,
        "mean_iou": float(iou[present].mean()) if present.any() else 0.0,
        "frequency_weighted_iou": float((true * iou).sum() / total),
        "classes": [
            {
                "name": name,
                "accuracy": float(accuracy[i]),
                "iou": float(iou[i]),
                "pixels": int(true[i]),
            }
            for i, name in enumerate(class_names)
        ],
    }


def median_frequency(*, pixels: Sequence[int], pixels_of_images: Sequence[int]) -> np.ndarray:
    """Weights float64 [C] of median frequency balancing (Eigen, Fergus 2015, arXiv:1411.4734).

    A class's frequency is its pixels over those of the images in which it occurs; its weight is the
    median of the frequencies over its own. A class that never occurs has weight 0.
    """
    present = np.array(pixels) > 0
    frequency = np.array(pixels) / np.maximum(pixels_of_images, 1)
    weights = np.zeros(len(pixels))
    weights[present] = np.median(frequency[present]) / frequency[present]
    return weights
