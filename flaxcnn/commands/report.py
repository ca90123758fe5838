"""The command `flaxcnn report`: runs as one HTML file, which `flaxcnn train` makes at its end."""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from flaxcnn.analysis.report import Contents, Mistake, Named, Picture, render, to_json
from flaxcnn.analysis.report.contents import flatten
from flaxcnn.analysis.report.look import draw_features, draw_filters, draw_mistakes
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training.facts import reload_data
from flaxcnn.training.inference import TrainedRun, load_run
from flaxcnn.training.logger import read_confusions, read_rows
from flaxcnn.training.sessions import read_sessions
from flaxcnn.training.stages import find_run
from flaxcnn.training.step import make_preprocess
from flaxcnn.training.workdir import Workdir

NAME = "report.html"
_MISTAKES = 48  # of all runs of a report
_LARGE = 64  # pixels to a side above which there are a third as many
_T = TypeVar("_T")


def run(args: argparse.Namespace) -> int:
    """Writes the report of the runs, and prints its name."""
    out = Path(args.out or Path(args.runs[0], NAME))
    contents = collect_all(args.runs)
    _write(out, render(contents))
    print(f"{out} ({out.stat().st_size / 1e3:,.0f} kB)")
    if args.json:
        _write(Path(args.json), json.dumps(to_json(contents), indent=1) + "\n")
        print(args.json)
    return DONE


def report_trained(workdir: str | Path) -> None:
    """The report of a run that has just finished; what is wrong is said in one line, on stderr.

    One that is newer than the run's result stays.
    """
    folder = Workdir(workdir).path
    out, result = folder / NAME, folder / "result.json"
    if out.exists() and out.stat().st_mtime >= result.stat().st_mtime:
        return
    try:
        _write(out, render(collect_all([str(folder)])))
        print(f"report: {out}", file=sys.stderr)
    except Exception as error:  # the run is trained, whatever becomes of its report
        said = " ".join(str(error).split())[:300] or type(error).__name__
        print(f"no report: {said}", file=sys.stderr)


def collect_all(paths: Sequence[str]) -> list[Contents]:
    """What the report says of the runs. Raises UserError for a folder without a finished run."""
    folders = [Path(os.path.abspath(path)) for path in paths]
    if len({*folders}) < len(folders):
        raise UserError(f"the same run twice: {', '.join(paths)}")
    names = [folder.name for folder in folders]
    names = names if len({*names}) == len(names) else [str(path) for path in paths]
    most = max(8, _MISTAKES // len(paths))
    return [collect(path, name, most) for path, name in zip(paths, names, strict=True)]


def collect(path: str, name: str, most: int) -> Contents:
    """What the report says of one run, called `name`, with up to `most` mistakes."""
    workdir = Workdir(find_run(path))
    if not workdir.has("result"):
        workdir.read("config")  # that there is a run at all
        raise UserError(f"{path} is not finished: the same `flaxcnn train` goes on with it")
    trained = load_run(workdir.path, "last")
    result, task, rows = workdir.read("result"), trained.task, read_rows(workdir)
    report, split, notes = result["report"], result["split"], []
    arrays = _try(lambda: _read_examples(trained, split), notes, "no predictions") or {}
    labels = task.labels(arrays) if arrays else None
    confusions = [{"split": "validation", **row} for row in read_confusions(workdir)]
    final = task.confusion(report, arrays) if arrays else None
    if final is not None:
        at = {"split": split, "epoch": round(max((row["epoch"] for row in rows), default=0))}
        confusions.append({**at, "step": result["steps"], "counts": final.tolist()})
    metric = task.monitor
    return Contents(
        name=name,
        path=str(path),
        metric=metric.name,
        unit=metric.unit,
        split=split,
        figures=_figures(result) | {metric.name: float(result[metric.name])},
        table=task.format(report),
        rows=[row for row in rows if row["split"] != "state"],
        class_names=[*trained.facts.class_names, *filter(None, [task.background])],
        classes=report.get("classes", ()),
        confusions=confusions if final is not None else (),
        wrong=0 if labels is None else int((labels[0] != labels[1]).sum()),
        images=result["images"],
        pictures=_task_pictures(trained) if labels is None else (),
        **_look(trained, split, arrays, most, notes),
        facts=_describe(trained, result),
        config=flatten(workdir.read("config")),
        environment=_environment(workdir),
        hashes=_hashes(trained, result),
        notes=notes,
    )


def _look(
    trained: TrainedRun, split: str, arrays: dict[str, np.ndarray], most: int, notes: list[str]
) -> dict[str, Any]:
    """The fields of `Contents` that the network is computed for; what fails gets a note."""
    model, variables, facts = trained.model, trained.variables, trained.facts
    shape = facts.image_shape
    filters = _try(lambda: draw_filters(model, variables, shape), notes, "no filters")
    found: dict[str, Any] = {"filters": filters or ()}
    dataset = _try(lambda: reload_data(trained.config, facts, trained.workdir), notes, "no images")
    if dataset is None:
        return found
    images, labels = dataset.splits[split], trained.task.labels(arrays) if arrays else None
    chosen = np.arange(0)
    if labels is not None:
        large = max(shape[:2]) > _LARGE
        chosen = _choose(arrays, labels, most // 3 if large else most)
        mistakes = _try(
            lambda: _make_mistakes(trained, images, arrays, chosen), notes, "no mistakes"
        )
        found["mistakes"] = mistakes or ()
    first = int(chosen[0]) if len(chosen) else 0
    image = _preprocess(trained)(images.load(np.array([first]))[0])[0]
    features = _try(lambda: draw_features(model, variables, image), notes, "no feature maps")
    return {**found, "features": features or ()}


def _try(action: Callable[[], _T], notes: list[str], missing: str) -> _T | None:
    """What `action` returns; if it fails a note, as one section is not worth the whole report."""
    try:
        return action()
    except Exception as error:
        notes.append(f"{missing}: {' '.join(str(error).split())[:300] or type(error).__name__}")
        return None


def _read_examples(trained: TrainedRun, split: str) -> dict[str, np.ndarray]:
    """predictions.npz; measured again where it is missing, or of a version without losses."""
    file = trained.workdir.examples
    if file.exists():
        with np.load(file) as saved:
            if "loss" in saved:
                return dict(saved)
    measured = trained.evaluate(split)
    return {"loss": measured.losses, **measured.arrays}


def _choose(arrays: Any, labels: tuple[np.ndarray, np.ndarray], most: int) -> np.ndarray:
    """Indices of the wrong predictions with the largest losses; NaN is the largest."""
    wrong = np.flatnonzero(labels[0] != labels[1])
    losses = np.nan_to_num(np.asarray(arrays["loss"], np.float64)[wrong], nan=np.inf)
    return wrong[np.argsort(-losses, kind="stable")[:most]]


def _make_mistakes(trained: TrainedRun, split: Any, arrays: Any, chosen: Any) -> list[Mistake]:
    if not len(chosen):
        return []
    labels = trained.task.labels(arrays)
    assert labels is not None
    pixels, _ = split.load(chosen)
    images = _preprocess(trained)(pixels)
    predicted = labels[1][chosen]
    pictures = draw_mistakes(trained.model, trained.variables, pixels, images, predicted)
    classes, names = trained.facts.class_names, arrays.get("path", np.arange(len(labels[0])))
    probabilities = arrays.get("probability", np.full(len(labels[0]), np.nan))
    return [
        Mistake(
            index=int(i),
            name=str(names[i]),
            true=classes[labels[0][i]],
            predicted=classes[labels[1][i]] if labels[1][i] >= 0 else "none",
            loss=float(arrays["loss"][i]),
            probability=float(probabilities[i]) if np.isfinite(probabilities[i]) else None,
            pictures=drawn,
        )
        for i, drawn in zip(chosen.tolist(), pictures, strict=True)
    ]


def _preprocess(trained: TrainedRun) -> Callable[[np.ndarray], np.ndarray]:
    preprocess = make_preprocess(trained.facts.mean, trained.facts.std)
    return lambda pixels: np.asarray(preprocess(jnp.asarray(pixels)))


def _task_pictures(trained: TrainedRun) -> list[Named]:
    """The files that the task has drawn."""
    from PIL import Image

    found = []
    for name in trained.task.pictures:
        path = trained.workdir.path / name
        if path.exists():
            with Image.open(path) as image:
                width, height = image.size
            found.append(Named(name, Picture(path.read_bytes(), "image/png", width, height)))
    return found


def _describe(trained: TrainedRun, result: dict[str, Any]) -> dict[str, Any]:
    """What was trained on what, and what came of it."""
    config, facts = trained.config, trained.facts
    rates = [row.get("images_per_second") for row in read_rows(trained.workdir)]
    rates = [rate for rate in rates if rate]
    start = facts.start
    sessions = read_sessions(trained.workdir)
    found = {
        "network": config.model.name,
        "parameters": result["parameters"],
        "data": config.data.source,
        "images": ", ".join(f"{count:,} {name}" for name, count in facts.examples.items()),
        "image shape": "x".join(map(str, facts.image_shape)),
        "weights at the start": start.source if start else None,
        "epochs": config.epochs + sum(facts.extended),
        "steps": result["steps"],
        "images per second": round(statistics.median(rates)) if rates else None,
        "started": sessions[0].get("started") if sessions else None,
    }
    found |= {key.replace("_", " "): value for key, value in _figures(result).items()}
    if best := result.get("best"):
        figure = trained.task.monitor.name
        found["best checkpoint"] = f"step {best['step']}: {figure} {best[figure]:.4f}"
    return {key: value for key, value in found.items() if value is not None}


def _figures(result: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, float)}


def _environment(workdir: Workdir) -> dict[str, Any]:
    """Of the last session."""
    sessions = read_sessions(workdir)
    found = flatten(sessions[-1]) if sessions else {}
    return {key: value for key, value in found.items() if key != "started"}


def _hashes(trained: TrainedRun, result: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of what went in and what came out."""
    state = [row for row in read_rows(trained.workdir) if row["split"] == "state"]
    found = {
        "parameters at the end": result["params_sha256"],
        "last state saved": state[-1]["sha256"] if state else "",
        "rows of metrics.jsonl": state[-1]["rows_sha256"] if state else "",
        "data set": trained.facts.data_version,
        "weights at the start": trained.facts.start.sha256 if trained.facts.start else "",
    }
    return {name: value for name, value in found.items() if value}


def _write(file: Path, text: str) -> None:
    """Writes it whole or not at all."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
