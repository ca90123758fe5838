"""Line charts as SVG that takes its colours from the page's style, light or dark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 40


class Line(NamedTuple):
    """A line through points (epoch, value); `style` are classes of the page's style."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


class Chart(NamedTuple):
    """Lines over epochs."""

    title: str
    lines: Sequence[Line]

    @property
    def svg(self) -> Markup:
        """The picture, as an element of a page."""
        return _draw(self)


def collect(
    rows: Sequence[Mapping[str, Any]], key: str, split: str, scale: float = 1.0
) -> list[tuple[float, float]]:
    """(epoch, mean of `key` over its rows); where there is one epoch, or a rate, every row."""
    points = [(row["epoch"], row[key]) for row in rows if row["split"] == split and key in row]
    points = [(float(x), float(y) * scale) for x, y in points if y is not None and math.isfinite(y)]
    epochs: dict[int, list[float]] = {}
    for x, y in points:
        epochs.setdefault(math.ceil(x - 1e-9), []).append(y)
    if key == "learning_rate" or len(epochs) < 2:
        return points
    return [(float(epoch), sum(of) / len(of)) for epoch, of in epochs.items()]


def make_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Up to `most` round numbers within low..high."""
    if high <= low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10, 20) if size * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _draw(chart: Chart) -> Markup:
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return Markup("")
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log = min(ys) > 0 and max(ys) > 30 * min(ys) and "rate" not in chart.title.lower()
    low, high = min(ys), max(ys)
    if log:
        low, high = math.log10(low), math.log10(high)
    pad = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    right = max(xs)
    left = 0.0 if right > 0 else -1.0

    def place_x(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        share = ((math.log10(y) if log else y) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
    ]
    for y in _log_ticks(low, high) if log else make_ticks(low, high):
        at = f"{place_y(y):.1f}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{at}" dy="4" text-anchor="end">{y:.4g}</text>')
    for x in make_ticks(left, right):
        at, foot = f"{place_x(x):.1f}", _HEIGHT - _BOTTOM + 16
        parts.append(f'<text x="{at}" y="{foot}" text-anchor="middle">{x:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">epochs</text>')
    for line in lines:
        places = [(f"{place_x(x):.1f}", f"{place_y(y):.1f}") for x, y in line.points]
        style, title = f"line {escape(line.style)}", f"<title>{escape(line.label)}</title>"
        if len(places) > 1:
            path = " ".join(",".join(place) for place in places)
            parts.append(f'<polyline class="{style}" points="{path}">{title}</polyline>')
        if len(places) <= 30 and "train" not in line.style.split() or len(places) == 1:
            parts += [
                f'<circle class="{style}" cx="{x}" cy="{y}" r="2.5">{title}</circle>'
                for x, y in places
            ]
    return Markup("".join(parts) + "</svg>")


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; of many decades the powers alone."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [y for y in found if low <= math.log10(y) <= high]
