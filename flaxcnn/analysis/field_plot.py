"""A picture of the receptive field against depth."""

from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def field_by_depth(found: Summary) -> np.ndarray:
    """Depth and height of the field, in pixels, of each convolution and pool: int [layers, 2].

    Depth counts them in order of computation, those of a shortcut or a branch one after the other.
    """
    sides = [
        layer.receptive_field
        for layer in found.layers
        if layer.located and (layer.multiply_adds or layer.type == "max_pool")
    ]
    pairs = [(depth, side[0]) for depth, side in enumerate(sides, 1) if side is not None]
    return np.array(pairs, int).reshape(-1, 2)


def draw_field(*found: Summary) -> "Figure":
    """Draws the field of one or several networks against depth, and the height of their images.

    The line is the largest so far, as branches begin anew; points above the image's height see
    border.
    """
    from matplotlib.figure import Figure

    figure = Figure((8.0, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(found):
        color = _COLORS[index % len(_COLORS)]
        depth, height = field_by_depth(one).T
        axes.step(
            depth,
            np.maximum.accumulate(height),
            where="post",
            color=color,
            linewidth=1.5,
            label=one.network,
        )
        axes.plot(depth, height, ".", color=color, markersize=4)
    labelled = 0.0
    for height in sorted({one.input_shape[0] for one in found}):
        axes.axhline(height, color="#666666", linewidth=1.0, linestyle="--")
        if height < 1.2 * labelled:
            continue  # 224 and 227: one label
        labelled = height
        axes.annotate(
            f"image, {height}",
            (1.0, height),
            (-4, 3),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            color="#666666",
        )
    axes.set(
        title="Receptive field",
        xlabel="depth (convolutions and pools)",
        ylabel="side (pixels)",
        yscale="log",
    )
    axes.set_ylim(bottom=1.0)
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    return figure


# Okabe and Ito's (2008), told apart by colour-blind readers.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
