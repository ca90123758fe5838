"""The curves of several cases in one picture, each with runs from several seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcnn.tasks.figures import label_of, make_figure, scale_of
from flaxcnn.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito (2008), told apart by colour-blind readers; then the same with other lines.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":")


def draw_case_curves(cases: Mapping[str, Sequence[Rows]], metric: Metric) -> "Figure":
    """Draws training loss and the `metric` of validation by epoch, a line for each case.

    A case has the rows of `metrics.jsonl` of each of its seeds. The line is their mean, the band
    around it reaches from the lowest to the highest.
    """
    figure = make_figure(11.0, 4.4)
    losses, values = figure.subplots(1, 2)
    panels = ((losses, "train", "loss", 1.0), (values, "validation", metric.name, scale_of(metric)))
    for index, (case, seeds) in enumerate(cases.items()):
        color, line = _COLORS[index % len(_COLORS)], _LINES[index // len(_COLORS) % len(_LINES)]
        for axes, split, key, scale in panels:
            curves = [_average_by_epoch(rows, split, key, scale) for rows in seeds]
            _plot_band(axes, curves, color, line, case)
    losses.set(title="Training loss", ylabel="loss (mean per image)")
    name = metric.name.replace("_", " ")
    values.set(title=f"Validation {name}", ylabel=label_of(metric))
    for axes in (losses, values):
        axes.set_xlabel("epochs")
        axes.locator_params(axis="x", integer=True)
        axes.grid(color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend()
    return figure


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
