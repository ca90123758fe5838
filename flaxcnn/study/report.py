"""The report of a study: its table, its figures, and what it was measured on."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.study.bootstrap import compare
from flaxcnn.study.pictures import draw_case_curves
from flaxcnn.study.study import Run, Study
from flaxcnn.tasks.figures import format_markdown, save_figure, scale_of
from flaxcnn.tasks.task import Metric, Task
from flaxcnn.training.facts import Facts
from flaxcnn.training.logger import read_rows
from flaxcnn.training.parts import make_task
from flaxcnn.training.sessions import read_sessions
from flaxcnn.training.workdir import Workdir

Case = dict[str, Any]


def write_report(
    study: Study,
    runs: Sequence[Run],
    text: str,
    command: str,
    folder: Path,
    name: str,
    *,
    quick: bool = False,
) -> Path:
    """Writes `<name>.md`, its figures and `<name>.json` into `folder`; returns the first.

    All `runs` are finished, in the study's `quick` form or in full. `text` is the study's own: its
    first line becomes the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = Workdir(runs[0].workdir)
    task = make_task(first.config(), Facts.read(first).setting)
    cases = {case: collect_case(task, [r for r in runs if r.case == case]) for case in study.cases}
    for case, figure in study.source.items():
        cases[case]["source"] = figure
    workdirs = {case: [Workdir(r.workdir) for r in runs if r.case == case] for case in cases}
    curves, pictures = f"{name}_curves.png", f"{name}_cases.png"
    rows = {case: [read_rows(w) for w in found] for case, found in workdirs.items()}
    save_figure(draw_case_curves(rows, task.monitor), folder / curves)
    predicted = {case: _load(found) for case, found in workdirs.items()}
    drawn = task.draw_cases(predicted)
    if drawn is not None:
        save_figure(drawn, folder / pictures)
    baseline = next(iter(cases))
    for case in list(cases)[1:]:
        difference = compare(task, predicted[baseline], predicted[case])
        cases[case] |= {"difference": difference} if difference else {}
    environment = read_sessions(first)[-1]
    content = {"command": command, "quick": quick, "cases": cases, "environment": environment}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    title, _, rest = text.strip().partition("\n")
    parts = [
        f"# {title}{' (quick form)' * quick}",
        _describe_quick(study) if quick else "",
        rest.strip(),
        format_table(cases, task.monitor),
        format_differences(cases),
        f"![Training loss and validation {task.monitor.name} by epoch]({curves})",
        "Lines are means over seeds, bands reach from the lowest to the highest seed.",
        task.format_cases(cases),
        f"![The cases' pictures side by side]({pictures})" if drawn is not None else "",
        _describe(environment, command),
    ]
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _describe_quick(study: Study) -> str:
    fields = ", ".join(f"{name}={value!r}" for name, value in study.quick.items())
    return (
        f"**This is the quick form (`--quick`: {fields or 'nothing shorter'}), which shows that "
        "the study works. Its figures are not the study's; what the text concludes is of the full "
        "form.**"
    )


def collect_case(task: Task, runs: Sequence[Run]) -> Case:
    """What the runs of one case came to: JSON-ready, the task's figure in the order of seeds."""
    results = [Workdir(run.workdir).read("result") for run in runs]
    facts = Workdir(runs[0].workdir).read("run")
    figure = task.monitor.name
    images = sum(facts["train_draws"])
    rates = [
        row["images_per_second"]
        for run in runs
        for row in read_rows(Workdir(run.workdir))
        if "images_per_second" in row  # not where a call compiled
    ]
    return {
        figure: [result[figure] for result in results],
        "loss": [result["loss"] for result in results],
        "seeds": [run.config.seed for run in runs],
        "split": results[0]["split"],
        "epochs": runs[0].config.epochs,
        "parameters": facts["parameters"],
        "images_per_epoch": images,
        "seconds_per_epoch": images / statistics.median(rates) if rates else None,
        **task.average([result["report"] for result in results]),
    }


def format_table(cases: Mapping[str, Case], metric: Metric) -> str:
    """One row per case, as Markdown: mean of `metric`, standard deviation (n - 1) and seeds."""
    scale, unit = scale_of(metric), f" {metric.unit}".rstrip()
    with_source = any("source" in case for case in cases.values())
    split = next(iter(cases.values()))["split"]
    columns = [
        "case",
        f"{split} {metric.name}",
        "std",
        "seeds",
        "loss",
        "epochs",
        "images per epoch",
    ]
    columns += ["s per epoch", "parameters"]
    if with_source:
        columns.insert(4, "source")
    rows = []
    for name, case in cases.items():
        values = case[metric.name]
        spread = f"{scale * statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        row = [name, f"{scale * statistics.fmean(values):.2f}{unit}", spread, str(len(values))]
        if with_source:
            row.append(f"{scale * case['source']:.2f}{unit}" if "source" in case else "")
        row += [f"{statistics.fmean(case['loss']):.4f}", str(case["epochs"])]
        seconds = case["seconds_per_epoch"]
        row += [f"{case['images_per_epoch']:,}", "-" if seconds is None else f"{seconds:.1f}"]
        rows.append([*row, f"{case['parameters']:,}"])
    return format_markdown(columns, rows)


def format_differences(cases: Mapping[str, Case]) -> str:
    """How each case differs from the first, as Markdown; "" where their examples differ."""
    found = {name: case["difference"] for name, case in cases.items() if "difference" in case}
    if not found:
        return ""
    baseline, of = next(iter(cases)), next(iter(found.values()))["of"]
    scale, digits = (100, 2) if of == "accuracy" else (1, 4)
    rows = [
        [name, *(f"{scale * difference[key]:+.{digits}f}" for key in ("mean", "low", "high"))]
        for name, difference in found.items()
    ]
    unit = " (percentage points)" if of == "accuracy" else ""
    table = format_markdown(["case", f"{of}{unit} less that of {baseline}", "from", "to"], rows)
    seeds = len(cases[baseline]["seeds"])
    drawn = f"the {seeds} seeds and of " if seeds > 1 else ""
    return (
        f"{table}\n\nFrom, to: 95 % interval by paired bootstrap, of {drawn}the examples. One that "
        f"holds 0 shows no difference{'; few seeds make it too narrow' if 1 < seeds < 10 else ''}."
    )


def _load(workdirs: Sequence[Workdir]) -> list[dict[str, np.ndarray]]:
    """What each run predicted; see `Workdir`."""
    found = []
    for workdir in workdirs:
        with np.load(workdir.examples) as arrays:
            found.append(dict(arrays))
    return found


def _describe(environment: Mapping[str, Any], command: str) -> str:
    versions, devices = environment["versions"], environment["devices"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "optax"))
    hardware = f"{devices['count']} x {devices['kind']}"
    if devices["platform"] == "cpu":
        threads = environment["threads"]
        hardware = f"{threads} thread{'s' * (threads > 1)} of a CPU ({environment['machine_type']})"
    return (
        f"Measured with `{command}` on {hardware}, Python {environment['python']}, {packages}; "
        f"written {datetime.date.today().isoformat()}. Figures are of the final parameters; "
        "seconds are those of training alone, from the median rate, on a machine that may have had "
        "other work."
    )
