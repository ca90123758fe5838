"""Pictures of a run: confusion matrix, predictions and learning curves, as PNG files.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers. Every file appears whole or
not at all.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxcnn.tasks.classification import count_confusions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
RED = "#D00000"
DPI = 120


def draw_confusion_matrix(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Draw how often each true class (row) was predicted as each class (column).

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
    save_figure(figure, path)


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
    path: str | os.PathLike[str],
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draw these images, eight in a row, with what was predicted and how surely; errors in red.

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
    save_figure(figure, path)


def draw_curves(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss, accuracy and learning rate against epochs from the rows of `metrics.jsonl`.

    A row has `epoch` (a float, 1.0 after one pass), `split` ("train", "validation" or "test") and
    some of `loss`, `accuracy` and `learning_rate`. Rows without a number are left out. Training
    loss and accuracy, of one call each, are faint, with their means over each epoch on top.
    """
    figure = make_figure(13.0, 4.0)
    losses, accuracies, rates = figure.subplots(1, 3)
    for split in COLORS:
        of_split = [row for row in rows if row["split"] == split]
        _plot(losses, of_split, "loss", split)
        _plot(accuracies, of_split, "accuracy", split, scale=100.0)
    _plot(rates, [row for row in rows if row["split"] == "train"], "learning_rate", "train")
    drawn = [y for line in losses.lines for y in np.asarray(line.get_ydata())]
    if drawn and min(drawn) > 0.0 and max(drawn) > 30.0 * min(drawn):
        losses.set_yscale("log")
    losses.set(title="Loss", ylabel="loss (mean per image)")
    accuracies.set(title="Accuracy", ylabel="accuracy (%)")
    rates.set(title="Learning rate", ylabel="learning rate", ylim=(0.0, None))
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epochs")
        axes.grid(color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (losses, accuracies):
        if axes.lines:
            axes.legend()
    save_figure(figure, path)


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


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / max(whole, 1):.2f} %"


def _shorten(name: str, limit: int) -> str:
    name = re.sub(r"\s+", " ", name)
    return name if len(name) <= limit else name[: limit - 1] + "…"
