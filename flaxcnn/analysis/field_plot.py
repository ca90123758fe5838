"""A picture of the receptive field against depth."""

from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def field_by_depth(found: Summary) -> np.ndarray:
    """Depth and height of the field, in pixels, of each layer with a place: int [layers, 2].

    Depth counts the layers that widen it or have parameters, in order of computation.
    """
    sides = [layer.receptive_field for layer in found.layers if layer.located]
    pairs = [(depth, side[0]) for depth, side in enumerate(sides, 1) if side is not None]
    return np.array(pairs, int).reshape(-1, 2)


def draw_field(*found: Summary) -> "Figure":
    """Draws the field of one or several networks against depth, and the height of their images.

    A field above its image's height sees border.
    """
    from matplotlib.figure import Figure

    figure = Figure((8.0, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(found):
        color = _COLORS[index % len(_COLORS)]
        depth, height = field_by_depth(one).T
        axes.step(depth, height, where="post", color=color, linewidth=1.5, label=one.network)
        axes.plot(depth, height, ".", color=color, markersize=4)
    for height in sorted({one.input_shape[0] for one in found}):
        axes.axhline(height, color="#666666", linewidth=1.0, linestyle="--")
        axes.annotate(
            f"image, {height}",
            (1.0, height),
            (-4, 3),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            color="#666666",
        )
    axes.set(title="Receptive field", xlabel="depth (layers)", ylabel="side (pixels)", yscale="log")
    axes.set_ylim(bottom=1.0)
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    return figure


# Okabe and Ito's (2008), told apart by colour-blind readers.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
