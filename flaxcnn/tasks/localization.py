"""Localization: the class of an image, and the one box around what it shows."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.boxes import paired_iou
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError
from flaxcnn.tasks.classification_pictures import count_confusions
from flaxcnn.tasks.place_pictures import draw_box, draw_boxes
from flaxcnn.tasks.task import Examples, Metric, Setting, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = jax.Array

_START = (0.25, 0.25, 0.75, 0.75)  # the box of outputs that are 0, as shares of the image
_BETA = 0.1  # share of the image's side below which smooth L1 is quadratic
_SHOWN = 16  # images of a picture


@dataclasses.dataclass(frozen=True)
class Localization(Task):
    """A class and a box, as in the single-object task of ILSVRC (Russakovsky et al. 2015).

    A classifier of the zoo with four outputs more: float32 [N, classes + 4]. The last four are
    left, top, right and bottom as shares of the image's width and height, counted from the box of
    half the image. Targets are `Boxes` of one box each. The loss of an image is cross-entropy plus
    `box_weight` times smooth L1 (Girshick 2015, arXiv:1504.08083), the mean over four sides; a box
    that augmentation has moved out of the image does not count in it.
    """

    monitor: ClassVar[Metric] = Metric("localization_accuracy", "max", "%")
    pictures: ClassVar[tuple[str, ...]] = ("boxes.png",)
    places: ClassVar[bool] = True

    class_names: tuple[str, ...]
    size: tuple[int, int]  # of images: height, width
    box_weight: float = 20.0

    @classmethod
    def make(cls, setting: Setting, *, box_weight: float = 20.0) -> "Localization":
        """From the fields of `task.kwargs`. Raises UserError for a set without classes."""
        if not setting.class_names:
            raise UserError("task.name: localization needs data with a box each, as boxes:<path>")
        if box_weight <= 0:
            raise UserError(f"task.kwargs.box_weight must be above 0, got {box_weight}")
        height, width, _ = setting.image_shape
        return cls(setting.class_names, (height, width), float(box_weight))

    def num_outputs(self) -> int:
        """One per class, and four."""
        return len(self.class_names) + 4

    def check(self, outputs: Any) -> None:
        """Raises UserError unless the network has a logit per class and four numbers more."""
        wanted = self.num_outputs()
        if not hasattr(outputs, "ndim") or outputs.ndim != 2 or outputs.shape[-1] != wanted:
            raise UserError(
                f"model.name: localization needs outputs [N, {wanted}], {wanted - 4} classes and "
                f"a box, and the network gives {outputs}"
            )

    def _split(self, outputs: Array) -> tuple[Array, Array]:
        """Logits [N, classes], and boxes [N, 4] as shares of the image."""
        return outputs[:, :-4], outputs[:, -4:] + jnp.asarray(_START)[None]

    def _sides(self) -> np.ndarray:
        height, width = self.size
        return np.array([[width, height, width, height]], np.float32)

    def _read(self, targets: Boxes) -> tuple[Array, Array, Array]:
        """Labels [N], boxes [N, 4] as shares of the image, and whether they count, float32 [N]."""
        if not isinstance(targets, Boxes):
            raise UserError("task.name: localization needs data with a box each, as boxes:<path>")
        boxes = jnp.asarray(targets.boxes)[:, 0] / self._sides()
        valid = jnp.asarray(targets.valid)[:, 0].astype(jnp.float32)
        return jnp.asarray(targets.labels)[:, 0], boxes, valid

    def losses(self, outputs: Array, targets: Boxes) -> Array:
        """See `Task`."""
        logits, boxes = self._split(outputs)
        labels, true, valid = self._read(targets)
        error = jnp.abs(boxes - true)
        smooth = jnp.where(error < _BETA, jnp.square(error) / (2 * _BETA), error - _BETA / 2)
        of_class = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return of_class + self.box_weight * smooth.mean(-1) * valid

    def measure(self, outputs: Array, targets: Boxes) -> dict[str, Array]:
        """`loss`, `accuracy`, `iou`, `localized` (IoU of 0.5 or more), each [N].

        `localization_accuracy` is that of both, the right class and IoU of 0.5 or more.
        """
        logits, boxes = self._split(outputs)
        labels, true, valid = self._read(targets)
        right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        iou = paired_iou(jnp.clip(boxes, 0, 1), true) * valid
        localized = (iou >= 0.5).astype(jnp.float32)
        return {
            "loss": self.losses(outputs, targets),
            "accuracy": right,
            "iou": iou,
            "localized": localized,
            "localization_accuracy": right * localized,
        }

    def predict(self, outputs: Array) -> dict[str, Array]:
        """`class` int32 [N], and `box` float32 [N, 4] in pixels, cut at the image's borders."""
        logits, boxes = self._split(outputs)
        return {
            "class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "box": jnp.clip(boxes, 0, 1) * self._sides(),
        }

    def expected(self, targets: Boxes) -> dict[str, Array]:
        """`true_class` and `true_box`."""
        labels, boxes, _ = self._read(targets)
        return {"true_class": labels, "true_box": boxes * self._sides()}

    def answer(self, outputs: Array) -> dict[str, Array]:
        """`probabilities` [N, classes] and `box` [N, 4], in pixels of the network's image."""
        logits, _ = self._split(outputs)
        return {"probabilities": jax.nn.softmax(logits), "box": self.predict(outputs)["box"]}

    def describe(self, answer: Mapping[str, np.ndarray], most: int) -> list[dict[str, Any]]:
        """`class`, `probability` and `box` of the likeliest classes."""
        probabilities = answer["probabilities"]
        box = [float(x) for x in answer["box"]]
        if not (np.isfinite(probabilities).all() and np.isfinite(box).all()):
            return []
        order = (-probabilities).argsort(kind="stable")[:most]
        return [
            {"class": self.class_names[i], "probability": float(probabilities[i]), "box": box}
            for i in order
        ]

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """As ` 98.20%  cat  (12, 30, 88, 95)`."""
        box = ", ".join(f"{x:.0f}" for x in entry["box"])
        return f"{entry['probability']:7.2%}  {entry['class']}  ({box})"

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Accuracy, mean IoU and the share with IoU of 0.5 or more, of all and of each class."""
        iou = _overlaps(arrays).astype(np.float64)
        right = arrays["class"] == arrays["true_class"]

        def figures(of: np.ndarray) -> dict[str, Any]:
            if not of.any():
                return {"images": 0, "accuracy": 0.0, "mean_iou": 0.0, "localized": 0.0}
            return {
                "images": int(of.sum()),
                "accuracy": float(right[of].mean()),
                "mean_iou": float(iou[of].mean()),
                "localized": float((iou[of] >= 0.5).mean()),
            }

        classes = [
            {"name": name, **figures(arrays["true_class"] == i)}
            for i, name in enumerate(self.class_names)
        ]
        both = float((right & (iou >= 0.5)).mean())
        whole = figures(np.ones(len(iou), bool))
        return {**whole, "localization_accuracy": both, "classes": classes}

    def confusion(self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Task`: of classes alone, wherever the boxes are."""
        return count_confusions(arrays["true_class"], arrays["class"], len(self.class_names))

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """A row per class, and one of all."""
        rows = [*report["classes"], {"name": "all", **report}]
        width = max(len("class"), *(len(row["name"]) for row in rows))
        lines = [f"{'class':<{width}}  images  accuracy  mean IoU  IoU >= 0.5"]
        for row in rows:
            lines.append(
                f"{row['name']:<{width}}  {row['images']:>6,}  {row['accuracy']:>8.4f}  "
                f"{row['mean_iou']:>8.4f}  {row['localized']:>10.4f}"
            )
        both = report["localization_accuracy"]
        return "\n".join([*lines, "", f"right class and IoU >= 0.5  {both:.4f}"])

    def draw(self, file: str, examples: Examples) -> "Figure":
        """Images with the true and the predicted box, those with the lowest IoU first."""
        arrays = examples.arrays
        iou = _overlaps(arrays)
        shown = iou.argsort(kind="stable")[:_SHOWN]
        names = [self.class_names[i] for i in arrays["class"][shown]]
        titles = [f"{name}, IoU {iou[i]:.2f}" for name, i in zip(names, shown, strict=True)]
        images = examples.load(shown)
        return draw_boxes(images, arrays["true_box"][shown], arrays["box"][shown], titles=titles)

    def fit_answer(
        self, answer: Mapping[str, np.ndarray], matrix: np.ndarray, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """See `Task`: the box in pixels of the image, cut at its borders."""
        scale, shift = matrix[[0, 1, 0, 1], [0, 1, 0, 1]], matrix[[0, 1, 0, 1], 2]
        box = np.clip(answer["box"] * scale + shift, 0, np.array([*size[::-1], *size[::-1]]))
        return {**answer, "box": box.astype(np.float32)}

    def annotate(self, image: np.ndarray, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C] with the predicted box and class, uint8 [H, W, 3]."""
        name = self.class_names[int(answer["probabilities"].argmax())]
        return draw_box(image, answer["box"], name)


def _overlaps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The IoU of each predicted box with the true one."""
    box, true = jnp.asarray(arrays["box"]), jnp.asarray(arrays["true_box"])
    return np.asarray(paired_iou(box, true))
