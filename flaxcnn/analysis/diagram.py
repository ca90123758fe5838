"""A network as a block diagram: SVG text, drawn from the shapes of its layers' outputs.

In the look of NN-SVG (LeNail 2019, doi:10.21105/joss.00747): maps are boxes, as tall and deep as
the maps are high and wide and as long as they have channels; vectors are columns.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from flaxcnn.errors import UserError

# Pixels: the tallest box, per root of channels, between boxes, around all; and of the texts.
_TALL, _LONG, _GAP, _MARGIN = 200.0, 1.6, 30.0, 24.0
_LINE, _LETTER = 16.0, 6.6
_BACK = (0.42, -0.28)  # where a pixel of depth goes: right and up
_MAPS = ("#dbe7f4", "#b7cee6", "#8fb0d4")  # front, top and right side
_VECTOR = ("#f8e3c0", "#efcb91", "#dfae63")
_LARGEST = 40  # boxes; more than that is not readable


class _Box(NamedTuple):
    texts: list[str]
    sizes: tuple[float, float, float]  # of the front, and backwards
    fills: tuple[str, str, str]

    @property
    def span(self) -> float:
        """From left to right."""
        return self.sizes[0] + _BACK[0] * self.sizes[2]


def select_layers(
    layers: Mapping[str, Sequence[int]], image_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Of `layer_shapes`, those worth a box: where the shape changes, outside of blocks.

    The image comes first, as "input", and what the network returns last. Of layers of one shape in
    a row the last is taken, and of deep networks only stages ("stage1" without "stage1_layer2").
    """
    outer = {name: shape for name, shape in layers.items() if "/" not in name}
    chosen = _drop_repeated(outer if len(outer) > 1 else layers, image_shape)
    if len(chosen) > _LARGEST // 2:
        parts = [name for name in outer if any(name.startswith(f"{other}_") for other in outer)]
        outer = {name: shape for name, shape in outer.items() if name not in parts}
        chosen = _drop_repeated(outer, image_shape)
    return chosen


def _drop_repeated(
    layers: Mapping[str, Sequence[int]], image_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    chosen = {"input": tuple(image_shape)}
    for name, shape in layers.items():
        if "dropout" in name or len(shape) not in (1, 3) or name[-2:-1] == "#":
            continue
        last = next(reversed(chosen))
        if chosen[last] == tuple(shape) and last != "input":
            del chosen[last]
        chosen[name] = tuple(shape)
    return chosen


def draw_diagram(layers: Mapping[str, Sequence[int]], title: str = "") -> str:
    """Draws layers from left to right, as SVG text: shapes without N by name, in order.

    Shapes are (H, W, C) of maps or (C,) of vectors; `select_layers` chooses those worth drawing.
    Lengths are roots of the numbers, which stand below. Raises UserError for no layers, for more
    than 40 and for another kind of shape.
    """
    if not 0 < len(layers) <= _LARGEST:
        raise UserError(f"a diagram has 1 to {_LARGEST} boxes, and {len(layers)} layers were given")
    side = max((max(shape[:2]) for shape in layers.values() if len(shape) == 3), default=1)
    boxes = [_make_box(name, tuple(shape), side) for name, shape in layers.items()]
    rises = [box.sizes[1] - _BACK[1] * box.sizes[2] for box in boxes]
    top = _MARGIN + (2 * _LINE if title else 0)
    middle, x, end = top + max(rises) / 2, _MARGIN, None
    below = top + max(rises) + 1.5 * _LINE
    parts = [_text(_MARGIN, _MARGIN + _LINE, title, "start", 16, True)] if title else []
    for box, rise in zip(boxes, rises, strict=True):
        room = max(box.span, _LETTER * max(map(len, box.texts)))
        center = x + room / 2
        left, bottom = center - box.span / 2, middle + rise / 2
        if end is not None:
            parts.append(_arrow(end + 5, left - 5, middle))
        parts.append(_draw_box(box, left, bottom))
        for i, line in enumerate(box.texts):
            parts.append(_text(center, below + i * _LINE, line, "middle", 12, i == 0))
        x, end = x + room + _GAP, left + box.span
    width, height = x - _GAP + _MARGIN, below + 2 * _LINE + _MARGIN / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'aria-label={quoteattr(title or "network")} fill="#222222" '
            'font-family="Helvetica, Arial, sans-serif">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _make_box(name: str, shape: tuple[int, ...], side: int) -> _Box:
    if len(shape) == 3:
        height, width, channels = shape
        tall, deep = (max(6.0, _TALL * sqrt(size / side)) for size in (height, width))
        sizes = (max(3.0, _LONG * sqrt(channels)), tall, deep)
        return _Box([name, f"{height}×{width}", f"× {channels}"], sizes, _MAPS)
    if len(shape) == 1:
        return _Box(
            [name, str(shape[0])], (12.0, min(_TALL, 12 + 3 * sqrt(shape[0])), 8.0), _VECTOR
        )
    raise UserError(f"{name} has the shape {shape}: a diagram draws (H, W, C) and (C,)")


def _draw_box(box: _Box, left: float, bottom: float) -> str:
    width, height, depth = box.sizes
    dx, dy = (step * depth for step in _BACK)
    right, top = left + width, bottom - height
    faces = (
        ((left, top), (right, top), (right, bottom), (left, bottom)),
        ((left, top), (left + dx, top + dy), (right + dx, top + dy), (right, top)),
        ((right, top), (right + dx, top + dy), (right + dx, bottom + dy), (right, bottom)),
    )
    return "\n".join(
        f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in face)}" fill="{fill}" '
        'stroke="#44576b" stroke-width="0.8" stroke-linejoin="round"/>'
        for face, fill in zip(faces, box.fills, strict=True)
    )


def _arrow(start: float, end: float, y: float) -> str:
    return (
        f'<path d="M{start:.1f},{y:.1f} H{end:.1f} m-5,-3.5 l5,3.5 l-5,3.5" fill="none" '
        'stroke="#777777" stroke-width="1.2"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, size: int, bold: bool) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )
