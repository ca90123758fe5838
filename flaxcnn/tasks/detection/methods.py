"""What the outputs of each kind of detector mean: its losses and boxes, with its priors."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from flaxcnn.boxes import fit_priors, make_default_boxes
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError
from flaxcnn.tasks.detection import ssd, yolo_v1, yolo_v2, yolo_v3

Array = jax.Array
Size = tuple[int, int]  # height, width
_STRIDE = 32  # of the coarsest maps of YOLOv2 and YOLOv3


class Method(Protocol):
    """How a kind of network finds objects. All but `check` is traced."""

    iou_threshold: ClassVar[float]  # of suppression, unless the config has another

    @property
    def sides(self) -> np.ndarray:
        """Widths and heights of priors, [A, 2] in pixels; without any [0, 2]."""
        ...

    def check(self, outputs: Any, classes: int) -> str:
        """What is wrong with outputs, which are shapes of N = 1; "" if nothing is."""
        ...

    def losses(self, outputs: Any, targets: Boxes) -> Array:
        """What is minimised, [N]."""
        ...

    def decode(self, outputs: Any) -> tuple[Array, Array]:
        """Boxes [N, P, 4] in pixels and the scores of classes [N, P, C]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class YOLOv1(Method):
    """A grid of cells with boxes; see `yolo_v1.py`."""

    iou_threshold: ClassVar[float] = 0.45

    size: Size
    classes: int
    settings: Mapping[str, Any]

    sides: ClassVar[np.ndarray] = np.zeros((0, 2))  # pyright: ignore[reportIncompatibleMethodOverride]

    def check(self, outputs: Any, classes: int) -> str:
        """See `Method`."""
        boxes, rest = divmod(_channels(outputs, 4) - classes, 5)
        if boxes < 1 or rest:
            return f"[N, rows, columns, 5 B + {classes}]"
        return ""

    def losses(self, outputs: Array, targets: Boxes) -> Array:
        """See `Method`."""
        return yolo_v1.loss(
            outputs, targets, size=self.size, num_classes=self.classes, **self.settings
        )

    def decode(self, outputs: Array) -> tuple[Array, Array]:
        """See `Method`."""
        return yolo_v1.decode(outputs, size=self.size, num_classes=self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class YOLOv2(Method):
    """A map of stride 32 with boxes relative to priors; see `yolo_v2.py`.

    The size of images is that of the map times 32, so that it may change in training.
    """

    iou_threshold: ClassVar[float] = 0.45

    priors: np.ndarray  # [A, 2]
    settings: Mapping[str, Any]

    @property
    def sides(self) -> np.ndarray:
        """See `Method`."""
        return self.priors

    def check(self, outputs: Any, classes: int) -> str:
        """See `Method`."""
        wanted = len(self.priors) * (5 + classes)
        return "" if _channels(outputs, 4) == wanted else f"[N, rows, columns, {wanted}]"

    def losses(self, outputs: Array, targets: Boxes) -> Array:
        """See `Method`."""
        size = _find_size(outputs)
        return yolo_v2.loss(outputs, targets, size=size, priors=self.priors, **self.settings)

    def decode(self, outputs: Array) -> tuple[Array, Array]:
        """See `Method`."""
        return yolo_v2.decode(outputs, size=_find_size(outputs), priors=self.priors)


@dataclasses.dataclass(frozen=True, eq=False)
class YOLOv3(Method):
    """Maps down to `stride`, each with priors of its own; see `yolo_v3.py`.

    The size of images is that of the last map times it, so that it may change in training.
    """

    iou_threshold: ClassVar[float] = 0.45

    priors: Sequence[np.ndarray]  # of each map, the finest first: [A, 2]
    settings: Mapping[str, Any]
    stride: int = _STRIDE

    @property
    def sides(self) -> np.ndarray:
        """See `Method`."""
        return np.concatenate(self.priors)

    def check(self, outputs: Any, classes: int) -> str:
        """See `Method`."""
        wanted = [len(of_map) * (5 + classes) for of_map in self.priors]
        given = outputs if isinstance(outputs, tuple | list) else (outputs,)
        if [_channels(x, 4) for x in given] == wanted:
            return ""
        return f"{len(wanted)} maps with {', '.join(map(str, wanted))} channels"

    def losses(self, outputs: Sequence[Array], targets: Boxes) -> Array:
        """See `Method`."""
        size = _find_size(outputs[-1], self.stride)
        return yolo_v3.loss(outputs, targets, size=size, priors=self.priors, **self.settings)

    def decode(self, outputs: Sequence[Array]) -> tuple[Array, Array]:
        """See `Method`."""
        return yolo_v3.decode(
            outputs, size=_find_size(outputs[-1], self.stride), priors=self.priors
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SSD(Method):
    """Boxes relative to default boxes on maps of several sizes; see `ssd.py`."""

    iou_threshold: ClassVar[float] = 0.45

    size: Size
    anchors: np.ndarray  # [P, 4]
    settings: Mapping[str, Any]

    @property
    def sides(self) -> np.ndarray:
        """See `Method`."""
        return np.unique((self.anchors[:, 2:] - self.anchors[:, :2]).round(2), axis=0)

    def check(self, outputs: Any, classes: int) -> str:
        """See `Method`."""
        count = len(self.anchors)
        given = outputs if isinstance(outputs, tuple | list) else (outputs,)
        shapes = [tuple(x.shape[1:]) for x in given if hasattr(x, "shape")]
        if shapes == [(count, 4), (count, classes + 1)]:
            return ""
        return f"[N, {count}, 4] and [N, {count}, {classes + 1}], as there are default boxes"

    def losses(self, outputs: Any, targets: Boxes) -> Array:
        """See `Method`."""
        return ssd.loss(outputs, targets, anchors=self.anchors, **self.settings)

    def decode(self, outputs: Any) -> tuple[Array, Array]:
        """See `Method`."""
        weights = {k: v for k, v in self.settings.items() if k == "weights"}
        return ssd.decode(outputs, size=self.size, anchors=self.anchors, **weights)


def _channels(outputs: Any, rank: int) -> int:
    return outputs.shape[-1] if getattr(outputs, "ndim", 0) == rank else 0


def _find_size(outputs: Array, stride: int = _STRIDE) -> Size:
    return outputs.shape[1] * stride, outputs.shape[2] * stride


METHODS = ("yolo_v1", "yolo_v2", "yolo_v3", "ssd")
_PRIORS = {"yolo_v2": 5, "yolo_v3": 9}  # how many are fitted unless the config says so
_PER_MAP = 3  # priors of a map of YOLOv3


def make_method(
    name: str,
    size: Size,
    classes: int,
    sides: np.ndarray,
    priors: Any,
    default_boxes: Mapping[str, Any],
    settings: Mapping[str, Any],
    stride: int = _STRIDE,
) -> Method:
    """The method of `task.kwargs.method`; other arguments as of `Detection.make`.

    `sides` are widths and heights of the training split's boxes, [n, 2] in pixels.
    """
    if name not in METHODS:
        raise UserError(f"task.kwargs.method must be one of {', '.join(METHODS)}, got {name!r}")
    losses = {"yolo_v1": yolo_v1, "yolo_v2": yolo_v2, "yolo_v3": yolo_v3, "ssd": ssd}
    _check_settings(losses[name].loss, settings)
    if stride != _STRIDE and name != "yolo_v3":
        raise UserError(f"task.kwargs.stride is of yolo_v3, not of {name}")
    if priors is not None and name not in _PRIORS:
        raise UserError(f"task.kwargs.priors: {name} has none")
    if default_boxes and name != "ssd":
        raise UserError(f"task.kwargs.default_boxes: {name} has none")
    if name == "yolo_v1":
        return YOLOv1(size, classes, settings)
    if name == "ssd":
        try:
            anchors = make_default_boxes(size, **default_boxes)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"task.kwargs.default_boxes: {error}") from error
        return SSD(size, anchors, settings)
    if size[0] % stride or size[1] % stride:
        raise UserError(
            f"data.image_size: images of {name} have sides of a multiple of {stride} pixels, not "
            f"{size[0]}x{size[1]}"
        )
    if name == "yolo_v2":
        return YOLOv2(_read_priors(priors or _PRIORS[name], sides), settings)
    priors = priors or _PRIORS[name]
    if isinstance(priors, int):
        if priors % _PER_MAP:
            raise UserError(
                f"task.kwargs.priors: yolo_v3 has {_PER_MAP} for each map, so not {priors}"
            )
        return YOLOv3(np.split(_read_priors(priors, sides), priors // _PER_MAP), settings, stride)
    return YOLOv3([_read_priors(of_map, sides) for of_map in priors], settings, stride)


def _read_priors(priors: Any, sides: np.ndarray) -> np.ndarray:
    """Those given, or so many fitted to `sides`: float32 [A, 2]."""
    if isinstance(priors, int):
        if not len(sides):
            raise UserError(
                "task.kwargs.priors: there are no boxes of a training split to fit them to"
            )
        try:
            return fit_priors(sides, priors)[0]
        except ValueError as error:
            raise UserError(f"task.kwargs.priors: {error}") from error
    found = np.asarray(priors, np.float32)
    if found.ndim != 2 or found.shape[-1] != 2 or not (found > 0).all():
        raise UserError("task.kwargs.priors must be pairs of width and height in pixels")
    return found


def _check_settings(loss: Callable[..., Array], settings: Mapping[str, Any]) -> None:
    known = {
        name
        for name, parameter in inspect.signature(loss).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    wrong = [name for name in settings if name not in known]
    if wrong:
        raise UserError(
            f"task.kwargs.loss: there is no {wrong[0]}; there are {', '.join(sorted(known))}"
        )
