"""Detection: the classes of all objects in an image, and a box around each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.boxes import detect
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError
from flaxcnn.tasks.detection.measures import (
    NUMBERS,
    Kept,
    check_installed,
    count_confusions,
    match_objects,
    mean_of,
    measure_coco,
    measure_voc,
)
from flaxcnn.tasks.detection.methods import Method, make_method
from flaxcnn.tasks.detection.pictures import draw_anchors, draw_curves, draw_found, draw_objects
from flaxcnn.tasks.task import Examples, Metric, Setting, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = jax.Array

_NEEDS = "task.name: detection needs data with boxes, as coco:<path>"
_FINEST = 100  # parts of a pixel that sides of boxes are counted in
_READ = 500  # images of a streamed split whose boxes are looked at
_FITTED = 5000  # boxes that priors are fitted to
_SHOWN = 9  # images of a picture


@dataclasses.dataclass(frozen=True, eq=False)
class Detection(Task):
    """Objects by a network of one stage: YOLO v1 to v3 or SSD.

    Targets are `Boxes`. The loss is the method's own, without those in `crowd`. Detections are what
    suppression leaves, at most `max_detections` of an image; they are measured in the pixels of
    the images' files, by pycocotools: `mean_ap` is the mean over classes of AP at IoU 0.5.
    """

    monitor: ClassVar[Metric] = Metric("mean_ap", "max", "%")
    pictures: ClassVar[tuple[str, ...]] = ("detections.png", "precision_recall.png", "anchors.png")
    places: ClassVar[bool] = True
    listed: ClassVar[int] = 100
    nothing: ClassVar[str] = "nothing found"
    background: ClassVar[str] = "background"

    class_names: tuple[str, ...]
    method: Method
    iou_threshold: float
    score_threshold: float = 0.005
    max_detections: int = 100
    candidates: int = 1000
    class_agnostic: bool = False
    shown_score: float = 0.3

    @classmethod
    def make(
        cls,
        setting: Setting,
        *,
        method: str = "yolo_v3",
        priors: Any = None,
        default_boxes: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        stride: int = 32,
        iou_threshold: float | None = None,
        score_threshold: float = 0.005,
        max_detections: int = 100,
        candidates: int = 1000,
        class_agnostic: bool = False,
        shown_score: float = 0.3,
    ) -> "Detection":
        """From the fields of `task.kwargs`.

        Args:
          setting: the data set of the run.
          method: what the network's outputs mean: "yolo_v1", "yolo_v2", "yolo_v3" or "ssd".
          priors: of YOLOv2 and v3, widths and heights in pixels of the network's images, those of
            v3 by map, the finest first; or how many are fitted to the training split's boxes
            (k-means on IoU). Default 5 and 9.
          default_boxes: of SSD, arguments of `make_default_boxes`; those of SSD300 by default.
          loss: arguments of the method's loss, as ignore_threshold.
          stride: of the coarsest map of YOLOv3.
          iou_threshold: above which a surer box of the same class suppresses another.
          score_threshold: what is not above it is no detection.
          max_detections: of an image, the surest.
          candidates: how many boxes, the surest, suppression looks at.
          class_agnostic: boxes suppress those of other classes, too.
          shown_score: from which detections are answers, drawn, and counted in the confusion
            matrix; figures are of all.

        Raises UserError for a field that is wrong.
        """
        if not setting.class_names:
            raise UserError(_NEEDS)
        for name, value in (
            ("iou_threshold", 0.5 if iou_threshold is None else iou_threshold),
            ("score_threshold", score_threshold),
            ("shown_score", shown_score),
        ):
            if not 0 <= value <= 1:
                raise UserError(f"task.kwargs.{name} must be in [0, 1], got {value}")
        for name, value in (("max_detections", max_detections), ("candidates", candidates)):
            if value < 1:
                raise UserError(f"task.kwargs.{name} must be at least 1, got {value}")
        height, width, _ = setting.image_shape
        counts = [setting.counts.get(name, ()) for name in ("widths", "heights")]
        sides = np.stack([np.asarray(x, np.float64) for x in counts], axis=-1) / _FINEST
        classes = len(setting.class_names)
        made = make_method(
            method, (height, width), classes, sides, priors, default_boxes or {}, loss or {}, stride
        )
        return cls(
            setting.class_names,
            made,
            made.iou_threshold if iou_threshold is None else iou_threshold,
            score_threshold,
            max_detections,
            candidates,
            class_agnostic,
            shown_score,
        )

    @staticmethod
    def count(split: Split, classes: int) -> dict[str, list[int]]:
        """`widths` and `heights` of up to 5,000 boxes, in hundredths of pixels.

        Raises UserError for targets that are no boxes.
        """
        every = len(split) if isinstance(split, ArraySplit) else min(len(split), _READ)
        _, targets = split.load(np.zeros(1, np.int64))
        if not isinstance(targets, Boxes) or targets.placed is None:
            raise UserError(_NEEDS)
        if isinstance(split, ArraySplit):
            targets = split.targets
        else:
            _, targets = split.load(np.linspace(0, len(split) - 1, every).astype(np.int64))
        sought = np.asarray(targets.valid)
        if targets.crowd is not None:
            sought = sought & ~np.asarray(targets.crowd)
        boxes = np.asarray(targets.boxes)[sought]
        if len(boxes) > _FITTED:
            boxes = boxes[np.linspace(0, len(boxes) - 1, _FITTED).astype(np.int64)]
        sides = np.rint((boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * _FINEST).astype(int)
        return {"widths": sides[:, 0].tolist(), "heights": sides[:, 1].tolist()}

    def num_outputs(self) -> int:
        """One per class; the network adds what its boxes need."""
        return len(self.class_names)

    def check(self, outputs: Any) -> None:
        """Raises UserError unless the outputs are the method's, and pycocotools is installed."""
        wanted = self.method.check(outputs, len(self.class_names))
        if wanted:
            shapes = [list(x.shape) for x in jax.tree.leaves(outputs)]
            raise UserError(
                f"model.name: task.kwargs.method needs outputs {wanted}, and the network gives "
                f"{' and '.join(map(str, shapes))}"
            )
        check_installed()

    def losses(self, outputs: Any, targets: Boxes) -> Array:
        """See `Task`."""
        return self.method.losses(outputs, targets)

    def measure(self, outputs: Any, targets: Boxes) -> dict[str, Array]:
        """`loss`, [N]; everything else is measured on the host."""
        return {"loss": self.losses(outputs, targets)}

    def predict(self, outputs: Any) -> dict[str, Array]:
        """The surest objects: `boxes` [N, D, 4] in pixels, `scores` and `labels` [N, D].

        Where there are fewer than D, scores are 0 and labels -1.
        """
        boxes, scores = self.method.decode(outputs)

        def of_image(boxes: Array, scores: Array) -> dict[str, Array]:
            found = detect(
                boxes,
                scores,
                iou_threshold=self.iou_threshold,
                score_threshold=self.score_threshold,
                max_outputs=self.max_detections,
                candidates=min(self.candidates, scores.size),
                class_agnostic=self.class_agnostic,
            )
            labels = jnp.where(found.valid, found.labels, -1).astype(jnp.int32)
            return {"boxes": found.boxes, "scores": found.scores, "labels": labels}

        return jax.vmap(of_image)(boxes, scores)

    def expected(self, targets: Boxes) -> dict[str, Array]:
        """`true_boxes`, `true_labels` (-1 for none), `true_crowd`, `true_area`, and `placed`."""
        valid = jnp.asarray(targets.valid)
        labels = jnp.where(valid, jnp.asarray(targets.labels), -1).astype(jnp.int32)
        return {
            "true_boxes": jnp.asarray(targets.boxes),
            "true_labels": labels,
            "true_crowd": jnp.asarray(targets.crowd) & valid,
            "true_area": jnp.asarray(targets.area),
            "placed": jnp.asarray(targets.placed),
        }

    def answer(self, outputs: Any) -> dict[str, Array]:
        """As `predict`."""
        return self.predict(outputs)

    def _shown(self, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which detections of an answer for one image are shown, the surest first."""
        sure = np.flatnonzero((answer["labels"] >= 0) & (answer["scores"] >= self.shown_score))
        return sure[np.argsort(-answer["scores"][sure], kind="stable")]

    def describe(self, answer: Mapping[str, np.ndarray], most: int) -> list[dict[str, Any]]:
        """`class`, `score` and `box` (left, top, right, bottom) of the surest objects."""
        return [
            {
                "class": self.class_names[answer["labels"][i]],
                "score": float(answer["scores"][i]),
                "box": [float(x) for x in answer["boxes"][i]],
            }
            for i in self._shown(answer)[:most]
        ]

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """As ` 98.20%  cat  (12, 30, 88, 95)`."""
        box = ", ".join(f"{x:.0f}" for x in entry["box"])
        return f"{entry['score']:7.2%}  {entry['class']}  ({box})"

    def fit_answer(
        self, answer: Mapping[str, np.ndarray], matrix: np.ndarray, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """See `Task`: boxes in pixels of the image, cut at its borders."""
        scale, shift = matrix[[0, 1, 0, 1], [0, 1, 0, 1]], matrix[[0, 1, 0, 1], 2]
        most = np.array([*size[::-1], *size[::-1]])
        boxes = np.clip(answer["boxes"] * scale + shift, 0, most)
        return {**answer, "boxes": boxes.astype(np.float32)}

    def annotate(self, image: np.ndarray, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C] with boxes, classes and scores, uint8 [H, W, 3]."""
        shown = self._shown(answer)[::-1]  # the surest on top
        names = [
            f"{self.class_names[answer['labels'][i]]} {answer['scores'][i]:.2f}" for i in shown
        ]
        return draw_objects(image, answer["boxes"][shown], answer["labels"][shown], names)

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Figures in 0..1 of all images of the split, JSON-ready.

        `mean_ap` is COCO's AP at IoU 0.5, `coco` its twelve numbers, `voc07` and `voc12` mean APs
        by PASCAL VOC's rules. Means are over the classes that occur.
        """
        kept, count = Kept.read(arrays), len(self.class_names)
        coco = measure_coco(kept, count)
        points, areas = measure_voc(kept, count)
        sought = (kept.true_labels >= 0) & ~kept.true_crowd
        classes = [
            {
                "name": name,
                "objects": int((sought & (kept.true_labels == i)).sum()),
                "ap": _number(coco.class_ap[i]),
                "ap50": _number(coco.class_ap50[i]),
                "voc07": _number(points[i]),
                "voc12": _number(areas[i]),
            }
            for i, name in enumerate(self.class_names)
        ]
        return {
            "images": len(kept.boxes),
            "objects": int(sought.sum()),
            "mean_ap": mean_of(coco.class_ap50),
            "voc07": mean_of(points),
            "voc12": mean_of(areas),
            "coco": coco.numbers,
            "classes": classes,
        }

    def confusion(self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Objects [C + 1, C + 1] at IoU 0.5; the last class is the background.

        Of detections from `shown_score` on, matched whatever their class.
        """
        return count_confusions(Kept.read(arrays), len(self.class_names), self.shown_score)

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """A row per class, the means, and COCO's numbers."""
        means = {"ap": report["coco"]["ap"], "ap50": report["mean_ap"]}
        rows = [*report["classes"], {**report, **means, "name": "all"}]
        width = max(len("class"), *(len(row["name"]) for row in rows))
        columns = ("ap50", "ap", "voc07", "voc12")
        lines = [f"{'class':<{width}}  objects   AP50  AP50-95   VOC07   VOC12"]
        for row in rows:
            shown = ["-" if row[x] is None else f"{row[x]:.4f}" for x in columns]
            lines.append(
                f"{row['name']:<{width}}  {row['objects']:>7,} {shown[0]:>6}  {shown[1]:>7}  "
                f"{shown[2]:>6}  {shown[3]:>6}"
            )
        lines.append("")
        for names in (NUMBERS[:6], NUMBERS[6:]):
            of_row = (f"{name} {_format(report['coco'][name])}" for name in names)
            lines.append("COCO: " + "  ".join(of_row))
        return "\n".join(lines)

    def draw(self, file: str, examples: Examples) -> "Figure":
        """What was found and missed in the worst images; precision and recall; anchors."""
        arrays = examples.arrays
        kept = Kept.read(arrays)
        if file == "precision_recall.png":
            return draw_curves(
                measure_coco(kept, len(self.class_names)).precision, self.class_names
            )
        if file == "anchors.png":
            known = np.asarray(arrays["true_labels"]) >= 0
            boxes, labels = arrays["true_boxes"][known], arrays["true_labels"][known]
            return draw_anchors(boxes, labels, self.class_names, self.method.sides)
        counts = []
        for index in range(len(kept.boxes)):
            of_found, of_true = match_objects(kept, index, self.shown_score)
            right = of_found >= 0
            same = kept.labels[index][right] == kept.true_labels[index][of_found[right]]
            counts.append((int(same.sum()), int((of_found >= -1).sum() - same.sum()),
                           int((of_true == -1).sum())))  # fmt: skip
        wrong = np.array([-(b + c) / max(a + b + c, 1) for a, b, c in counts])
        shown = wrong.argsort(kind="stable")[:_SHOWN]
        titles = [
            f"{examples.names[i]}: {counts[i][0]} right, {counts[i][1]} wrong, "
            f"{counts[i][2]} missed"
            for i in shown
        ]
        return draw_found(
            examples.load(shown), arrays, shown, self.class_names, self.shown_score, titles=titles
        )

    def average(self, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `Task`."""
        names = ("mean_ap", "voc07", "voc12")
        found: dict[str, Any] = {n: float(np.mean([r[n] for r in reports])) for n in names}
        found["coco"] = {n: float(np.mean([r["coco"][n] for r in reports])) for n in NUMBERS}
        return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _format(value: float) -> str:
    return "-" if value < 0 else f"{value:.4f}"
