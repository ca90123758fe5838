"""Pose: where the joints of a body are, as numbers."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.data.targets import Keypoints
from flaxcnn.errors import UserError
from flaxcnn.tasks.place_pictures import draw_bodies, draw_body
from flaxcnn.tasks.pose_measures import (
    find_joint,
    measure_distances,
    measure_pck,
    measure_pcp,
    measure_torsos,
)
from flaxcnn.tasks.task import Examples, Metric, Setting, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = jax.Array

LOSSES = ("l2", "smooth_l1", "l1")
_BETA = 0.1  # share of the image's side below which smooth L1 is quadratic
_PARTS = 1_000_000  # of an image's side: counts are whole numbers
_COUNTED = 2000  # bodies of a streamed split of which the mean pose is
_SHOWN = 16  # images of a picture
_NO_POINTS = "task.name: pose needs data with keypoints, as keypoints:<path>"


@dataclasses.dataclass(frozen=True)
class Pose(Task):
    """DeepPose (Toshev, Szegedy 2014, arXiv:1312.4659): K joints by regression.

    A network of the zoo with 2 K outputs, x and y of each joint, normalised to the box around the
    body, which is the image: 0 is its centre, -0.5 and 0.5 are its borders (equation 1). One with
    refinement stages gives [N, stages * 2 K], of which the last 2 K are the answer; the losses of
    all stages are added. Targets are `Keypoints`; joints that are not visible count nowhere. The
    loss of a stage is the mean over visible joints of the squared distance, of smooth L1, or of L1.
    """

    monitor: ClassVar[Metric] = Metric("pck", "max", "%")
    pictures: ClassVar[tuple[str, ...]] = ("joints.png",)
    places: ClassVar[bool] = True

    joint_names: tuple[str, ...]
    size: tuple[int, int]  # of images: height, width
    limbs: tuple[tuple[int, int], ...] = ()
    mean_pose: tuple[tuple[float, float], ...] = ()  # as shares of the image's width and height
    loss: str = "l2"

    @classmethod
    def make(cls, setting: Setting, *, loss: str = "l2") -> "Pose":
        """From the fields of `task.kwargs`. Raises UserError for a set without keypoints."""
        if loss not in LOSSES:
            raise UserError(f"task.kwargs.loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not setting.class_names or not setting.counts:
            raise UserError(_NO_POINTS)
        height, width, _ = setting.image_shape
        limbs = np.array(setting.counts["limbs"], int).reshape(-1, 2)
        mean = np.array(setting.counts["mean_pose"]).reshape(-1, 2) / _PARTS
        return cls(
            setting.class_names,
            (height, width),
            tuple((int(a), int(b)) for a, b in limbs),
            tuple((float(x), float(y)) for x, y in mean),
            loss,
        )

    @staticmethod
    def count(split: Split, classes: int) -> dict[str, list[int]]:
        """`limbs`, and `mean_pose` of the visible joints, in millionths of the image's sides."""
        if isinstance(split, ArraySplit):
            targets, (height, width) = split.targets, split.images.shape[1:3]
        else:
            spread = np.linspace(0, len(split) - 1, min(len(split), _COUNTED)).astype(np.int64)
            images, targets = split.load(spread)
            height, width = images.shape[1:3]
        if not isinstance(targets, Keypoints):
            raise UserError(_NO_POINTS)
        shares = np.asarray(targets.points) / np.array([[[width, height]]])
        seen = np.asarray(targets.visible)[..., None]
        known = seen.sum(axis=0)
        mean = np.where(known > 0, (shares * seen).sum(axis=0) / np.maximum(known, 1), 0.5)
        return {
            "limbs": [i for limb in targets.limbs for i in limb],
            "mean_pose": np.rint(mean * _PARTS).astype(int).ravel().tolist(),
        }

    def num_outputs(self) -> int:
        """Two per joint."""
        return 2 * len(self.joint_names)

    def check(self, outputs: Any) -> None:
        """Raises UserError unless the network has two numbers per joint, or that for each stage."""
        wanted = self.num_outputs()
        if not hasattr(outputs, "ndim") or outputs.ndim != 2 or outputs.shape[-1] % wanted:
            raise UserError(
                f"model.name: pose needs outputs [N, {wanted}], x and y of "
                f"{len(self.joint_names)} joints, or that many for each stage, and the network "
                f"gives {outputs}"
            )

    def _stages(self, outputs: Array) -> Array:
        """[N, stages, K, 2], as shares of the image."""
        return outputs.reshape(outputs.shape[0], -1, len(self.joint_names), 2) + 0.5

    def _sides(self) -> np.ndarray:
        return np.array(self.size[::-1], np.float32)

    def losses(self, outputs: Array, targets: Keypoints) -> Array:
        """See `Task`."""
        true = jnp.asarray(targets.points) / self._sides()[None, None]
        error = self._stages(outputs) - true[:, None]
        if self.loss == "l2":
            of_joints = jnp.square(error).sum(-1)
        elif self.loss == "l1":
            of_joints = jnp.abs(error).sum(-1)
        else:
            error = jnp.abs(error)
            smooth = jnp.where(error < _BETA, jnp.square(error) / (2 * _BETA), error - _BETA / 2)
            of_joints = smooth.sum(-1)
        visible = jnp.asarray(targets.visible).astype(jnp.float32)[:, None]
        known = jnp.maximum(visible.sum(-1), 1)
        return ((of_joints * visible).sum(-1) / known).sum(-1)

    def measure(self, outputs: Array, targets: Keypoints) -> dict[str, Array]:
        """`loss`, and `error`: the mean distance of visible joints, a share of the height, [N]."""
        height = self.size[0]
        points = self._stages(outputs)[:, -1] * self._sides()[None, None]
        distance = jnp.sqrt(jnp.square(points - jnp.asarray(targets.points)).sum(-1))
        visible = jnp.asarray(targets.visible).astype(jnp.float32)
        error = (distance * visible).sum(-1) / jnp.maximum(visible.sum(-1), 1)
        return {"loss": self.losses(outputs, targets), "error": error / height}

    def predict(self, outputs: Array) -> dict[str, Array]:
        """`points` float32 [N, stages, K, 2] in pixels."""
        return {"points": self._stages(outputs) * self._sides()[None, None, None]}

    def expected(self, targets: Keypoints) -> dict[str, Array]:
        """`true_points` [N, K, 2] and `visible` bool [N, K]."""
        return {
            "true_points": jnp.asarray(targets.points),
            "visible": jnp.asarray(targets.visible),
        }

    def answer(self, outputs: Array) -> dict[str, Array]:
        """`points` [N, K, 2] of the last stage, in pixels of the network's image."""
        return {"points": self.predict(outputs)["points"][:, -1]}

    def describe(self, answer: Mapping[str, np.ndarray], most: int) -> list[dict[str, Any]]:
        """One entry: `joints`, [x, y] by name."""
        points = answer["points"]
        if not np.isfinite(points).all():
            return []
        pairs = zip(self.joint_names, points.tolist(), strict=True)
        return [{"joints": dict(pairs)}]

    def format_entry(self, entry: Mapping[str, Any]) -> str:
        """As `r_ankle (41, 96), r_knee (43, 120), ...`."""
        return ", ".join(f"{name} ({x:.0f}, {y:.0f})" for name, (x, y) in entry["joints"].items())

    def report(self, means: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """PCK at 0.2 of the torso, PCKh at half the head, PCP; of all, joints, limbs and stages.

        `mean_pose` has the figures of what predicts the training split's mean for every image.
        `pckh` is left out where there is no head_top and neck.
        """
        true, visible = arrays["true_points"], arrays["visible"]
        stages = [self._measure(p, true, visible) for p in np.moveaxis(arrays["points"], 1, 0)]
        mean = np.array(self.mean_pose, np.float32)[None] * self._sides()[None, None]
        baseline = self._measure(np.broadcast_to(mean, true.shape), true, visible)
        last = stages[-1]
        joints = [
            {"name": name, "pck": _plain(last["pck"][i]), "baseline": _plain(baseline["pck"][i])}
            | ({"pckh": _plain(last["pckh"][i])} if "pckh" in last else {})
            for i, name in enumerate(self.joint_names)
        ]
        limbs = [
            {"name": self._name(limb), "pcp": _plain(last["pcp"][i])}
            for i, limb in enumerate(self.limbs)
        ]
        totals = [{key: _plain(x[-1]) for key, x in of.items()} for of in (*stages, baseline)]
        return {
            "images": len(true),
            **totals[-2],
            "mean_pose": totals[-1],
            "stages": totals[:-1],
            "joints": joints,
            "limbs": limbs,
        }

    def _measure(
        self, points: np.ndarray, true: np.ndarray, visible: np.ndarray
    ) -> dict[str, np.ndarray]:
        torso = measure_torsos(true, visible, self.joint_names)
        figures = {"pck": measure_pck(points, true, visible, torso, 0.2)}
        ends = [find_joint(self.joint_names, "", part) for part in ("head_top", "neck")]
        if ends[0] is not None and ends[1] is not None:
            head = measure_distances(true, visible, ends[0], ends[1])
            figures["pckh"] = measure_pck(points, true, visible, head, 0.5)
        return figures | {"pcp": measure_pcp(points, true, visible, self.limbs)}

    def _name(self, limb: tuple[int, int]) -> str:
        return f"{self.joint_names[limb[0]]}-{self.joint_names[limb[1]]}"

    @staticmethod
    def format(report: Mapping[str, Any]) -> str:
        """Joints, limbs, then the figures of each stage beside those of the mean pose."""
        rows = [*report["joints"], *report["limbs"]]
        width = max(len("mean pose"), *(len(row["name"]) for row in rows))
        lines = [f"{'joint':<{width}}  PCK@0.2  mean pose    PCKh"]
        for row in report["joints"]:
            lines.append(
                f"{row['name']:<{width}}  {_figure(row['pck'])}    "
                f"{_figure(row['baseline'])} {_figure(row.get('pckh'))}"
            )
        lines += ["", f"{'limb':<{width}}      PCP"]
        lines += [f"{row['name']:<{width}}  {_figure(row['pcp'])}" for row in report["limbs"]]
        lines += ["", f"{'all':<{width}}  PCK@0.2    PCKh     PCP"]
        named = [(f"stage {i}", of) for i, of in enumerate(report["stages"], 1)]
        for name, of in (*named, ("mean pose", report["mean_pose"])):
            figures = (_figure(of.get(key)) for key in ("pck", "pckh", "pcp"))
            lines.append(f"{name:<{width}}  {' '.join(figures)}")
        return "\n".join(lines)

    def draw(self, file: str, examples: Examples) -> "Figure":
        """Images with the true and the predicted body, spread from the best to the worst."""
        arrays = examples.arrays
        points, true, visible = arrays["points"][:, -1], arrays["true_points"], arrays["visible"]
        distance = (np.linalg.norm(points - true, axis=-1) * visible).sum(1)
        error = distance / np.maximum(visible.sum(1), 1)
        order = error.argsort(kind="stable")
        shown = order[np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int)]
        return draw_bodies(
            examples.load(shown),
            true[shown],
            points[shown],
            visible[shown],
            self.limbs,
            titles=[f"{error[i]:.1f} pixels" for i in shown],
        )

    def fit_answer(
        self, answer: Mapping[str, np.ndarray], matrix: np.ndarray, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """See `Task`: points in pixels of the image."""
        points = answer["points"] * matrix[[0, 1], [0, 1]][None] + matrix[:2, 2][None]
        return {"points": points.astype(np.float32)}

    def annotate(self, image: np.ndarray, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C] with the predicted body, uint8 [H, W, 3]."""
        return draw_body(image, answer["points"], self.limbs)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"
