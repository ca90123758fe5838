"""What pictures of every task share: figures, their files, and the learning curves of a run.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcnn.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
RED = "#D00000"
DPI = 120


def draw_curves(rows: Sequence[Mapping[str, Any]], metric: Metric) -> "Figure":
    """Draws loss, `metric` and learning rate against epochs from the rows of `metrics.jsonl`.

    A row has `epoch` (a float, 1.0 after one pass), `split` ("train", "validation" or "test") and
    some of `loss`, `metric` and `learning_rate`. Rows without a number are skipped. Training loss
    and metric, of one call each, are faint, with their means over each epoch on top.
    """
    figure = make_figure(13.0, 4.0)
    losses, values, rates = figure.subplots(1, 3)
    for split in COLORS:
        of_split = [row for row in rows if row["split"] == split]
        _plot(losses, of_split, "loss", split)
        _plot(values, of_split, metric.name, split, scale_of(metric))
    _plot(rates, [row for row in rows if row["split"] == "train"], "learning_rate", "train")
    drawn = [y for line in losses.lines for y in np.asarray(line.get_ydata())]
    if drawn and min(drawn) > 0.0 and max(drawn) > 30.0 * min(drawn):
        losses.set_yscale("log")
    losses.set(title="Loss", ylabel="loss (mean per image)")
    values.set(title=metric.name.capitalize().replace("_", " "), ylabel=label_of(metric))
    rates.set(title="Learning rate", ylabel="learning rate", ylim=(0.0, None))
    for axes in (losses, values, rates):
        axes.set_xlabel("epochs")
        axes.grid(color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (losses, values):
        if axes.lines:
            axes.legend()
    return figure


def _plot(
    axes: "Axes", rows: Sequence[Mapping[str, Any]], key: str, split: str, scale: float = 1.0
) -> None:
    """Draw `key` as a line; few points, as of the test split, also get markers."""
    points = [(row["epoch"], row[key] * scale) for row in rows if row.get(key) is not None]
    points = [(x, y) for x, y in points if np.isfinite(y)]
    if not points:
        return
    x, y = map(np.array, zip(*points, strict=True))
    epochs = np.ceil(x - 1e-9)  # what ends at 0.5 belongs to the first
    smoothed = split == "train" and key != "learning_rate" and len(x) > len(np.unique(epochs)) > 1
    if smoothed:
        axes.plot(x, y, "-", color=COLORS[split], linewidth=1.0, alpha=0.3)
        x = np.unique(epochs)
        y = np.array([y[epochs == epoch].mean() for epoch in x])
    style = {"train": "-" if len(x) > 1 else "o", "validation": "-o", "test": "D"}[split]
    axes.plot(x, y, style, color=COLORS[split], markersize=4, linewidth=1.5, label=split)


def scale_of(metric: Metric) -> float:
    """What a figure is drawn times: shares are drawn as percent."""
    return 100.0 if metric.unit == "%" else 1.0


def label_of(metric: Metric) -> str:
    """As `accuracy (%)`."""
    return metric.name.replace("_", " ") + (f" ({metric.unit})" if metric.unit else "")


def make_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that no window system knows about."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, layout="constrained")


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a PNG file, whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with warnings.catch_warnings():
            # A class name in a script that the font lacks shows as boxes; that is no one's error.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def format_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
