"""The report of a study: its table, its figures, and what it was measured on."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.study.pictures import draw_case_confusions, draw_case_curves
from flaxcnn.study.study import Run, Study
from flaxcnn.tasks.classification import count_confusions
from flaxcnn.training.logger import read_rows
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
    cases = {case: collect_case([r for r in runs if r.case == case]) for case in study.cases}
    for case, accuracy in study.source.items():
        cases[case]["source"] = accuracy
    workdirs = {case: [Workdir(r.workdir) for r in runs if r.case == case] for case in cases}
    facts = Workdir(runs[0].workdir).read("run")
    curves, confusions = f"{name}_curves.png", f"{name}_confusions.png"
    rows = {case: [read_rows(w) for w in found] for case, found in workdirs.items()}
    draw_case_curves(folder / curves, rows)
    classes = facts["class_names"]
    counts = {case: _add_confusions(found, len(classes)) for case, found in workdirs.items()}
    draw_case_confusions(folder / confusions, counts, classes)
    environment = read_sessions(Workdir(runs[0].workdir))[-1]
    content = {"command": command, "quick": quick, "cases": cases, "environment": environment}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    title, _, rest = text.strip().partition("\n")
    parts = [
        f"# {title}{' (quick form)' * quick}",
        _describe_quick(study) if quick else "",
        rest.strip(),
        format_table(cases),
        f"![Training loss and validation accuracy by epoch]({curves})",
        "Lines are means over seeds, bands reach from the lowest to the highest seed.",
        *([format_classes(cases)] if len(classes) <= 20 else []),
        f"![Confusion matrices]({confusions})",
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


def collect_case(runs: Sequence[Run]) -> Case:
    """What the runs of one case came to: JSON-ready, accuracies in 0..1 in the order of seeds."""
    results = [Workdir(run.workdir).read("result") for run in runs]
    facts = Workdir(runs[0].workdir).read("run")
    reports = [result["report"] for result in results]
    images = sum(facts["train_draws"])
    rates = [
        row["images_per_second"]
        for run in runs
        for row in read_rows(Workdir(run.workdir))
        if "images_per_second" in row  # not where a call compiled
    ]
    return {
        "accuracy": [result["accuracy"] for result in results],
        "loss": [result["loss"] for result in results],
        "seeds": [run.config.seed for run in runs],
        "split": results[0]["split"],
        "epochs": runs[0].config.epochs,
        "parameters": facts["parameters"],
        "images_per_epoch": images,
        "seconds_per_epoch": images / statistics.median(rates) if rates else None,
        "classes": {
            entry["name"]: {
                key: statistics.fmean(report["classes"][i][key] for report in reports)
                for key in ("precision", "recall", "f1")
            }
            for i, entry in enumerate(reports[0]["classes"])
        },
    }


def format_table(cases: Mapping[str, Case]) -> str:
    """One row per case, as Markdown: mean accuracy, standard deviation (n - 1) and seeds."""
    with_source = any("source" in case for case in cases.values())
    split = next(iter(cases.values()))["split"]
    columns = ["case", f"{split} accuracy", "std", "seeds", "loss", "epochs", "images per epoch"]
    columns += ["s per epoch", "parameters"]
    if with_source:
        columns.insert(4, "source")
    rows = []
    for name, case in cases.items():
        accuracies = case["accuracy"]
        spread = f"{100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else "-"
        row = [name, f"{100 * statistics.fmean(accuracies):.2f} %", spread, str(len(accuracies))]
        if with_source:
            row.append(f"{100 * case['source']:.2f} %" if "source" in case else "")
        row += [f"{statistics.fmean(case['loss']):.4f}", str(case["epochs"])]
        seconds = case["seconds_per_epoch"]
        row += [f"{case['images_per_epoch']:,}", "-" if seconds is None else f"{seconds:.1f}"]
        rows.append([*row, f"{case['parameters']:,}"])
    return _markdown(columns, rows)


def format_classes(cases: Mapping[str, Case]) -> str:
    """Precision, recall and F1 of each class (row) in each case (column), means over seeds."""
    columns = ["class: precision, recall, F1", *cases]
    first = next(iter(cases.values()))
    rows = [
        [name, *(_format_scores(case["classes"][name]) for case in cases.values())]
        for name in first["classes"]
    ]
    return _markdown(columns, rows)


def _format_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{scores[key]:.2f}" for key in ("precision", "recall", "f1"))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _add_confusions(workdirs: Sequence[Workdir], classes: int) -> np.ndarray:
    total = np.zeros((classes, classes), np.int64)
    for workdir in workdirs:
        with np.load(workdir.examples) as examples:
            total += count_confusions(examples["true_label"], examples["label"], classes)
    return total


def _describe(environment: Mapping[str, Any], command: str) -> str:
    versions, devices = environment["versions"], environment["devices"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax", "optax"))
    hardware = f"{devices['count']} x {devices['kind']}"
    if devices["platform"] == "cpu":
        threads = environment["threads"]
        hardware = f"{threads} thread{'s' * (threads > 1)} of a CPU ({environment['machine_type']})"
    return (
        f"Measured with `{command}` on {hardware}, Python {environment['python']}, {packages}; "
        f"written {datetime.date.today().isoformat()}. Accuracies are of the final parameters; "
        "seconds are those of training alone, from the median rate, on a machine that may have had "
        "other work."
    )
