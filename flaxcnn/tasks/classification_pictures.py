"""Pictures of classification: confusion matrices, and images with their predictions."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.tasks.figures import RED, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def count_confusions(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count the examples of each true class (row) predicted as each class (column), int64.

    Those predicted as none (-1) are in no column.
    """
    counts, some = np.zeros((classes, classes), np.int64), predictions >= 0
    np.add.at(counts, (labels[some], predictions[some]), 1)
    return counts


def draw_confusion_matrix(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
) -> "Figure":
    """Draws how often each true class (row) was predicted as each class (column).

    The colour is the share of the true class; up to 20 classes the cells hold the counts, above
    that only about 20 of the names are written.
    """
    classes = len(class_names)
    counts = count_confusions(labels, predictions, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = max(0.42 * classes, 2.0) if classes <= 20 else 7.0
    figure = make_figure(cells + 3.4, cells + 2.4)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    shown = range(0, classes, -(-classes // 20))
    names = [_shorten(class_names[i], 20) for i in shown]
    crowded = max(map(len, names)) > 3
    axes.set_xticks(
        shown,
        names,
        rotation=45 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
        va="top",
        parse_math=False,
    )
    axes.set_yticks(shown, names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    correct, total = int(np.trace(counts)), len(labels)
    axes.set_title(f"{correct} of {total} right ({_percent(correct, total)})")
    if classes <= 20:
        size = min(9.0, 40.0 / len(str(counts.max())))
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black" if count else "#BBBBBB"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
    return figure


def choose_examples(
    labels: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray, count: int = 48
) -> np.ndarray:
    """Indices of `count` examples worth drawing (all, if there are fewer): errors first.

    Errors are at most half while there are right predictions for the rest; the surest come first.
    The right ones are spread evenly over the split.
    """
    wrong, right = np.flatnonzero(predictions != labels), np.flatnonzero(predictions == labels)
    surest = wrong[np.argsort(-probabilities[wrong], kind="stable")]
    surest = surest[: max(count // 2, count - len(right))]
    free = min(count - len(surest), len(right))
    return np.concatenate([surest, right[np.linspace(0, len(right) - 1, free).round().astype(int)]])


def draw_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Draws these images, eight in a row, with what was predicted and how surely; errors in red.

    `images` are uint8 [N, H, W, 1 or 3], `probabilities` those of the predictions. `title` says
    what they are a sample of; without it, how many of them are wrong. `names`, of the images' files
    or their numbers, stand below them; of long ones the end.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    aspect = float(np.clip(images.shape[1] / images.shape[2], 0.3, 3.0))
    height = 1.35 * aspect + (0.4 if names is None else 0.55)
    figure = make_figure(max(1.35 * columns, 5.0), height * rows + 0.7)
    figure.suptitle(
        (title or f"{(predictions != labels).sum()} of these {len(images)} images wrong")
        + "\nerrors in red; predicted class (its probability) over true class",
        fontsize=11,
        parse_math=False,
    )
    for index, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        predicted, true = int(predictions[index]), int(labels[index])
        error = predicted != true
        said = "none"
        if predicted >= 0:
            said = f"{_shorten(class_names[predicted], 12)} ({probabilities[index]:.0%})"
        axes.set_title(
            f"{said}\ntrue: {_shorten(class_names[true], 12)}",
            fontsize=8,
            color=RED if error else "black",
            parse_math=False,
        )
        if names is not None:
            name = names[index]
            name = name if len(name) <= 20 else f"…{name[-19:]}"
            axes.set_xlabel(name, fontsize=7, color="#555555", parse_math=False)
        if error:
            axes.spines[:].set(color=RED, linewidth=2)
    return figure


def draw_case_confusions(cases: Mapping[str, np.ndarray], class_names: Sequence[str]) -> "Figure":
    """Draws each case's confusion matrix, counts [classes, classes], as shares of the true class.

    Up to 12 classes the cells hold the shares in percent.
    """
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = make_figure(4.2 * columns + 0.8, 4.2 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    classes = len(class_names)
    shown = range(0, classes, -(-classes // 20))
    names = [class_names[i][:12] for i in shown]
    for axes, (case, counts) in zip(panels, cases.items(), strict=False):
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(shown, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(shown, names, fontsize=8)
        accuracy = np.trace(counts) / max(counts.sum(), 1)
        axes.set_title(f"{case}: {accuracy:.2%}", fontsize=10, parse_math=False)
        if classes <= 12:
            for (row, column), share in np.ndenumerate(shares):
                color = "white" if share > 50 else "black"
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=7
                )
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    figure.supxlabel("predicted class", fontsize=9)
    figure.supylabel("true class", fontsize=9)
    return figure


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / max(whole, 1):.2f} %"


def _shorten(name: str, limit: int) -> str:
    name = re.sub(r"\s+", " ", name)
    return name if len(name) <= limit else name[: limit - 1] + "…"
