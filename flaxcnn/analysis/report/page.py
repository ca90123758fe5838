"""Reports as a page: one file that loads nothing, and can be read without its script."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from flaxcnn.analysis.report.contents import Contents, differences, flatten
from flaxcnn.analysis.report.curves import Chart, Line, collect

LIMIT = 5_000_000  # bytes of a page
_MOST_CELLS = 30  # classes whose confusion matrix is a table
_MOST_EPOCHS = 100  # matrices that the slider goes through
_FOLDER = Path(__file__).parent


def render(runs: Sequence[Contents], limit: int = LIMIT) -> str:
    """The page, of at most `limit` bytes in UTF-8: pictures are left out until it is."""
    title = "flaxcnn: " + ", ".join(run.name for run in runs)
    while True:
        page = _template().render(
            title=title,
            runs=[_view(i, run) for i, run in enumerate(runs)],
            charts=_charts(runs),
            differing={
                kind: differences([flatten(getattr(run, kind)) for run in runs])
                for kind in ("facts", "config", "environment")
            },
            style=_read("report.css"),
            script=_read("report.js"),
        )
        smaller = [_shrink(run) for run in runs]
        if len(page.encode()) <= limit or smaller == list(runs):
            return page
        runs = smaller


def _shrink(run: Contents) -> Contents:
    """With fewer pictures: first the task's, of which there are files, then half the mistakes."""
    if run.pictures:
        return dataclasses.replace(run, pictures=())
    if run.mistakes:
        return dataclasses.replace(run, mistakes=run.mistakes[: len(run.mistakes) // 2])
    if run.features or run.filters:
        return dataclasses.replace(run, features=(), filters=())
    return dataclasses.replace(run, confusions=run.confusions[-1:])


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = _format
    return environment.get_template("report.html.j2")


def _read(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _format(value: Any, unit: str = "") -> str:
    """As a person writes it: 1,234, 0.9861, 98.61 %; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{100 * value:.2f} %" if unit == "%" else f"{value:.6g}"
    return json.dumps(value)


def _view(index: int, run: Contents) -> dict[str, Any]:
    """What the template needs of a run beside what it is."""
    view: dict[str, Any] = {"run": run, "id": f"run{index}", "matrix": None, "confused": []}
    view["columns"] = list(dict.fromkeys(key for row in run.classes for key in row))
    view["true"] = sorted({mistake.true for mistake in run.mistakes})
    view["predicted"] = sorted({mistake.predicted for mistake in run.mistakes})
    if run.confusions:
        last = run.confusions[-1]["counts"]
        view["confused"] = _most_confused(last, run.class_names)
        if len(last) <= _MOST_CELLS:
            view["matrix"] = [_shares(row) for row in last]
            view["epochs"] = _thin(run.confusions)
    return view


def _shares(row: Sequence[int]) -> list[tuple[int, float]]:
    total = max(1, sum(row))
    return [(count, round(count / total, 3)) for count in row]


def _thin(confusions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some of them evenly, the last among them."""
    count = len(confusions)
    most = min(count, _MOST_EPOCHS)
    return [confusions[count - 1 - (count - 1) * i // max(1, most - 1)] for i in range(most)][::-1]


def _most_confused(
    counts: Sequence[Sequence[int]], names: Sequence[str]
) -> list[tuple[str, str, int]]:
    """True class, what it was taken for and how often: the ten most frequent."""
    found = [
        (names[i], names[j], count)
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda entry: -entry[2])[:10]


def _charts(runs: Sequence[Contents]) -> list[Chart]:
    """Loss, metric and learning rate: of one run by split, of several by run."""
    charts = []
    metrics = dict.fromkeys((run.metric, run.unit) for run in runs)
    for key, unit in [("loss", ""), *metrics, ("learning_rate", "")]:
        title = key.replace("_", " ") + (f" ({unit})" if unit else "")
        scale = 100.0 if unit == "%" else 1.0
        lines = []
        for index, run in enumerate(runs):
            for split in ("train", "validation"):
                if len(runs) > 1:
                    label, style = f"{run.name}, {split}", f"{split} c{index % 7}"
                else:
                    label, style = split, f"{split} c{0 if split == 'train' else 1}"
                lines.append(Line(label, collect(run.rows, key, split, scale), style))
            if len(runs) == 1 and key in run.figures:
                end = max((row["epoch"] for row in run.rows), default=0)
                points = [(float(end), run.figures[key] * scale)]
                lines.append(Line(run.split, points, "test c2"))
        lines = [line for line in lines if line.points]
        if lines:
            charts.append(Chart(title, lines))
    return charts
