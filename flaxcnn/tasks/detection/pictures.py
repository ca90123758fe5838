"""Pictures of detections: what was found and missed, precision and recall, anchors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.tasks.detection.measures import Kept, match_objects
from flaxcnn.tasks.figures import RED, make_figure
from flaxcnn.tasks.segmentation_pictures import class_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
# Okabe and Ito (2008): found, wrong, missed; grey is not counted.
_RIGHT, _WRONG, _MISSED, _IGNORED = "#009E73", RED, "#0072B2", "#999999"
_NAMED = 20  # classes with a curve of their own


def draw_found(
    images: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    shown: np.ndarray,
    class_names: Sequence[str],
    least_score: float,
    *,
    titles: Sequence[str],
) -> "Figure":
    """Images [n, H, W, C] with detections that are right or wrong, and objects that were missed.

    `arrays` are of the whole split, of which `shown` are the images' indices.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    kept = Kept.read(arrays)
    height, width = images.shape[1:3]
    rows = -(-len(images) // _COLUMNS)
    figure = make_figure(11.0, (3.5 * height / width + 0.3) * rows + 0.5)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, index, title in zip(axes, images, shown, titles, strict=False):
        axis.imshow(
            image.squeeze(),
            cmap="gray" if image.shape[-1] == 1 else None,
            extent=(0, width, height, 0),
        )
        axis.set_title(title, fontsize=8)
        verdicts = match_objects(kept, index, least_score)
        marks = []
        for i, match in enumerate(verdicts.of_found):
            label = arrays["labels"][index, i]
            if match == -2 and (label < 0 or arrays["scores"][index, i] < least_score):
                continue
            right = match >= 0 and arrays["true_labels"][index, match] == label
            color = _IGNORED if match == -2 else _RIGHT if right else _WRONG
            text = f"{class_names[label]} {arrays['scores'][index, i]:.2f}"
            marks.append((arrays["boxes"][index, i], color, text))
        for i, match in enumerate(verdicts.of_true):
            label = arrays["true_labels"][index, i]
            if match == -1:
                marks.append((arrays["true_boxes"][index, i], _MISSED, class_names[label]))
        for box, color, text in marks:
            left, top, right, bottom = box
            corner = Rectangle((left, top), right - left, bottom - top, fill=False, color=color)
            axis.add_patch(corner)
            axis.text(left + 1, top + 1, text, color=color, fontsize=5, va="top", clip_on=True)
        axis.set(xlim=(0, width), ylim=(height, 0))
    named = {"right": _RIGHT, "wrong": _WRONG, "missed": _MISSED, "not counted": _IGNORED}
    handles = [Line2D([], [], color=color) for color in named.values()]
    figure.legend(handles, list(named), loc="outside lower center", ncols=len(named), fontsize=8)
    return figure


def draw_curves(precision: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Precision at recalls 0, 0.01 .. 1 of each class and their mean, [101, C]; nan: no objects."""
    figure = make_figure(6.5, 5.0)
    axes = figure.subplots()
    recall = np.linspace(0, 1, len(precision))
    known = np.flatnonzero(np.isfinite(precision[0]))
    ap = precision.mean(axis=0)
    for index in known[:_NAMED]:
        axes.plot(recall, precision[:, index], label=f"{class_names[index]} {ap[index]:.3f}")
    if len(known) > 1:
        mean = precision[:, known].mean(axis=1)
        axes.plot(recall, mean, "k", linewidth=2, label=f"mean {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Precision and recall at IoU 0.5, AP of each class", fontsize=10)
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(known):
        axes.legend(fontsize=8, loc="lower left")
    return figure


def draw_anchors(
    boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str], anchors: np.ndarray
) -> "Figure":
    """Widths and heights of boxes [n, 4], and the anchors' [A, 2], in pixels."""
    figure = make_figure(6.5, 5.5)
    axes = figure.subplots()
    sides = boxes[:, 2:] - boxes[:, :2]
    colors = class_colors(len(class_names)) / 255
    for index in np.unique(labels)[:_NAMED]:
        of_class = sides[labels == index]
        axes.plot(*of_class.T, ".", color=colors[index], markersize=3, label=class_names[index])
    if len(anchors):
        axes.plot(*anchors.T, "k+", markersize=12, markeredgewidth=2, label="anchors")
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, None), ylim=(0, None))
    axes.set_title("Boxes of the split and anchors", fontsize=10)
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(boxes) or len(anchors):
        axes.legend(fontsize=8)
    return figure


def draw_objects(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """The image uint8 [H, W, C] with boxes [n, 4] and a name for each: uint8 [H, W, 3]."""
    import cv2

    drawn = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    drawn = np.ascontiguousarray(drawn).copy()
    side = min(image.shape[:2])
    thick, scale = max(1, round(side / 250)), max(0.3, side / 800)
    colors = class_colors(int(labels.max(initial=0)) + 1)
    for box, label, name in zip(boxes, labels, names, strict=True):
        left, top, right, bottom = (round(float(x)) for x in box)
        color = tuple(int(x) for x in colors[label])
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), color, thick)
        place = left + 2, max(top - 3, round(30 * scale))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(drawn, name, place, font, scale, color, max(1, thick - 1), cv2.LINE_AA)
    return drawn
