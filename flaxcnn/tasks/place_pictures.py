"""Pictures of boxes and of bodies."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.tasks.figures import make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRUE, _PREDICTED = "#009E73", "#E69F00"  # Okabe and Ito (2008)
_COLOR = (230, 159, 0)
_COLUMNS = 4


def draw_boxes(
    images: np.ndarray, true: np.ndarray, predicted: np.ndarray, *, titles: Sequence[str]
) -> "Figure":
    """Images [n, H, W, C] with the true and the predicted boxes, [n, 4] in pixels."""
    from matplotlib.patches import Rectangle

    def mark(axes: "Axes", index: int) -> None:
        for boxes, color in ((true, _TRUE), (predicted, _PREDICTED)):
            left, top, right, bottom = boxes[index]
            corner = Rectangle((left, top), right - left, bottom - top, fill=False, color=color)
            axes.add_patch(corner)

    return _draw_grid(images, titles, mark)


def draw_bodies(
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    visible: np.ndarray,
    limbs: Sequence[tuple[int, int]],
    *,
    titles: Sequence[str],
) -> "Figure":
    """Images [n, H, W, C] with the true and the predicted joints, [n, K, 2], and their limbs."""

    def mark(axes: "Axes", index: int) -> None:
        everything = np.ones_like(visible[index])
        for points, known, color in (
            (true[index], visible[index], _TRUE),
            (predicted[index], everything, _PREDICTED),
        ):
            for one, other in limbs:
                if known[one] and known[other]:
                    axes.plot(*points[[one, other]].T, color=color, linewidth=1.2)
            axes.plot(*points[known].T, ".", color=color, markersize=3)

    return _draw_grid(images, titles, mark)


def _draw_grid(
    images: np.ndarray, titles: Sequence[str], mark: Callable[["Axes", int], None]
) -> "Figure":
    from matplotlib.lines import Line2D

    count, (height, width) = len(images), images.shape[1:3]
    rows = -(-count // _COLUMNS)
    figure = make_figure(9.0, (2.2 * height / width + 0.3) * rows + 0.5)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for index, (axis, image, title) in enumerate(zip(axes, images, titles, strict=False)):
        axis.imshow(
            image.squeeze(),
            cmap="gray" if image.shape[-1] == 1 else None,
            extent=(0, width, height, 0),
        )
        axis.set_title(title, fontsize=8)
        mark(axis, index)
        axis.set(xlim=(0, width), ylim=(height, 0))
    handles = [Line2D([], [], color=c) for c in (_TRUE, _PREDICTED)]
    figure.legend(handles, ["true", "predicted"], loc="outside lower center", ncols=2, fontsize=8)
    return figure


def draw_box(image: np.ndarray, box: np.ndarray, name: str) -> np.ndarray:
    """The image uint8 [H, W, C] with a box, [4] in pixels, and a name: uint8 [H, W, 3]."""
    import cv2

    image = _to_color(image)
    left, top, right, bottom = (round(float(x)) for x in box)
    thick = _thickness(image)
    cv2.rectangle(image, (left, top), (right - 1, bottom - 1), _COLOR, thick)
    scale = max(0.3, min(image.shape[:2]) / 500)
    cv2.putText(
        image,
        name,
        (left + 2, max(top - 3, round(30 * scale))),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        _COLOR,
        thick,
        cv2.LINE_AA,
    )
    return image


def draw_body(
    image: np.ndarray, points: np.ndarray, limbs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The image uint8 [H, W, C] with joints [K, 2], in pixels, and limbs: uint8 [H, W, 3]."""
    import cv2

    image = _to_color(image)
    ends = [tuple(round(float(x)) for x in point) for point in np.clip(points, -1e4, 1e4)]
    thick = _thickness(image)
    for one, other in limbs:
        cv2.line(image, ends[one], ends[other], _COLOR, thick, cv2.LINE_AA)
    for end in ends:
        cv2.circle(image, end, thick + 1, _COLOR, -1, cv2.LINE_AA)
    return image


def _to_color(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(
        np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    ).copy()


def _thickness(image: np.ndarray) -> int:
    return max(1, round(min(image.shape[:2]) / 200))
