"""Draws what a run of pose or segmentation said of test images, without the photographs.

python docs/make_place_pictures.py RUN OUT.png

For docs/studies: terms of CamVid and LSPET leave no place for their photographs here. Images are
spread from the best to the worst. RUN/predictions.png and joints.png have the photographs, too.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flaxcnn.data.targets import IGNORED
from flaxcnn.tasks.place_pictures import draw_bodies
from flaxcnn.tasks.segmentation_pictures import class_colors


def spread(errors: np.ndarray, count: int) -> np.ndarray:
    """Indices of images from the least error to the largest."""
    order = errors.argsort(kind="stable")
    return order[np.linspace(0, len(order) - 1, count).astype(int)]


def draw_joints(run: Path, arrays: dict[str, np.ndarray]) -> Figure:
    """Twelve bodies."""
    config = json.loads((run / "config.json").read_text())
    facts = json.loads((run / "run.json").read_text())
    limbs = [(int(a), int(b)) for a, b in np.reshape(facts["counts"]["limbs"], (-1, 2))]
    points, true, visible = arrays["points"][:, -1], arrays["true_points"], arrays["visible"]
    error = (np.linalg.norm(points - true, axis=-1) * visible).sum(1) / visible.sum(1)
    shown = spread(error, 12)
    height, width = config["data"]["image_size"]
    blank = np.full((len(shown), height, width, 3), 255, np.uint8)
    titles = [f"{error[i]:.1f} pixels" for i in shown]
    return draw_bodies(blank, true[shown], points[shown], visible[shown], limbs, titles=titles)


def draw_classes(run: Path, arrays: dict[str, np.ndarray]) -> Figure:
    """Six masks and what was predicted."""
    names = json.loads((run / "run.json").read_text())["class_names"]
    true, predicted = arrays["true_classes"], arrays["classes"]
    known = true != IGNORED
    wrong = (known & (true != predicted)).sum((1, 2)) / known.sum((1, 2))
    shown = spread(wrong, 6)
    colors = np.full((256, 3), 255, np.uint8)  # what is not known stays white
    colors[: len(names)] = class_colors(len(names))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, i in zip(axes.T, shown, strict=True):
        for axis, classes in zip(column, (true[i], predicted[i]), strict=True):
            axis.imshow(colors[classes])
            axis.set_axis_off()
        column[1].set_title(f"{100 * wrong[i]:.0f} % wrong", fontsize=8)
    axes[0, 0].set_title("true classes", fontsize=8)
    handles = [
        Patch(color=tuple(color / 255), label=name)
        for name, color in zip(names, colors, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def main(run: Path, out: Path) -> None:
    """Writes the picture."""
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    draw = draw_joints if "points" in arrays else draw_classes
    draw(run, arrays).savefig(out, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
