"""Pictures of several cases side by side, each with runs from several seeds, as PNG files."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcnn.tasks.pictures import make_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito (2008), told apart by colour-blind readers; then the same with other lines.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":")


def draw_case_curves(path: str | os.PathLike[str], cases: Mapping[str, Sequence[Rows]]) -> None:
    """Draws training loss and validation accuracy by epoch, a line for each case.

    A case has the rows of `metrics.jsonl` of each of its seeds. The line is their mean, the band
    around it reaches from the lowest to the highest.
    """
    figure = make_figure(11.0, 4.4)
    losses, accuracies = figure.subplots(1, 2)
    panels = ((losses, "train", "loss", 1), (accuracies, "validation", "accuracy", 100))
    for index, (case, seeds) in enumerate(cases.items()):
        color, line = _COLORS[index % len(_COLORS)], _LINES[index // len(_COLORS) % len(_LINES)]
        for axes, split, key, scale in panels:
            curves = [_average_by_epoch(rows, split, key, scale) for rows in seeds]
            _plot_band(axes, curves, color, line, case)
    losses.set(title="Training loss", ylabel="loss (mean per image)")
    accuracies.set(title="Validation accuracy", ylabel="accuracy (%)")
    for axes in (losses, accuracies):
        axes.set_xlabel("epochs")
        axes.locator_params(axis="x", integer=True)
        axes.grid(color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend()
    save_figure(figure, path)


def _average_by_epoch(rows: Rows, split: str, key: str, scale: float) -> dict[int, float]:
    """{epoch: mean of `key` over its rows, times `scale`}; a row of epoch 0.5 belongs to 1."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["split"] == split:
            found.setdefault(math.ceil(row["epoch"] - 1e-9), []).append(row[key] * scale)
    return {epoch: float(np.mean(values)) for epoch, values in found.items()}


def _plot_band(
    axes: "Axes", curves: Sequence[Mapping[int, float]], color: str, line: str, label: str
) -> None:
    """One line through the means of the epochs that all curves have; nothing without any."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not epochs:
        return
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, values.mean(0), line, color=color, marker=marker, label=label)
    if len(curves) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)


def draw_case_confusions(
    path: str | os.PathLike[str], cases: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> None:
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
    save_figure(figure, path)
