"""The start and the end of a run: what it is, exact test figures, tables and pictures."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcnn.data.augment import read_views
from flaxcnn.errors import UserError
from flaxcnn.tasks import pictures
from flaxcnn.tasks.classification import format_report
from flaxcnn.training.checkpoint import SavedCheckpoints
from flaxcnn.training.config import Config
from flaxcnn.training.environment import count_threads
from flaxcnn.training.experiment import Evaluator, Experiment, make_experiment
from flaxcnn.training.logger import read_rows
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.workdir import Workdir


def print_start(experiment: Experiment) -> None:
    """What is about to be trained, on what."""
    facts, plan, device = experiment.facts, experiment.plan, jax.devices()[0]
    splits = ", ".join(f"{count:,} {name}" for name, count in facts.examples.items())
    threads = f", {count_threads()} threads" if device.platform == "cpu" else ""
    extended = f", {sum(facts.extended)} of them added" if facts.extended else ""
    images = f"{splits} images, {'x'.join(map(str, facts.image_shape))}"
    print(f"{experiment.config.model.name}: {facts.parameters:,} parameters")
    print(f"{experiment.config.data.source}: {images}, of {len(facts.class_names)} classes")
    print(f"{jax.device_count()} x {device.device_kind}{threads}", end="; ")
    epochs = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}{extended}"
    print(f"{epochs}, of {plan.steps_per_epoch:,} steps", flush=True)


def report_run(experiment: Experiment, workdir: Workdir, state: TrainState) -> None:
    """Measures the final parameters on the test split; writes pictures, examples and result.json.

    Where a set has no test split the validation split stands in for it, and is named. With
    `data.views` all of it is over these views, but for the metrics called "without_views". The
    best checkpoint is measured beside, if it is another. result.json comes last: with it the run
    counts as finished.
    """
    splits = experiment.dataset.splits
    name = next(name for name in ("test", "validation", "train") if name in splits)
    split = splits[name]
    variables = experiment.parallel.replicate(state.variables)
    views = read_views(experiment.config.data.views, experiment.facts.image_shape)
    plain = {"without_views": experiment.evaluator(split)(variables)[0]} if views else {}
    evaluate = experiment.evaluator(split, views)
    means, examples = evaluate(variables)
    facts = experiment.facts
    report = experiment.task.report(
        examples["true_label"], examples["label"], facts.train_images, facts.train_draws
    )
    _save_examples(experiment, workdir, name, examples)
    for path in _pictures(workdir):
        _draw(path, experiment, workdir, name)
    best = _measure_best(experiment, workdir, evaluate, int(state.step), means)
    result = {
        "split": name,
        "images": len(split),
        **means,
        **plain,
        **({"best": best} if best else {}),
        **({"extended": facts.extended} if facts.extended else {}),
        "report": report,
        "steps": int(state.step),
        "parameters": experiment.facts.parameters,
        "params_sha256": hash_tree({"params": state.params, "batch_stats": state.batch_stats}),
    }
    workdir.write("result", result)


def _measure_best(
    experiment: Experiment,
    workdir: Workdir,
    evaluate: Evaluator,
    last: int,
    means: dict[str, float],
) -> dict[str, Any]:
    """The best checkpoint by `monitor`, as `flaxcnn evaluate` takes it; {} if none was validated.

    `means` are those of the `last` step.
    """
    monitor = experiment.config.monitor
    validation = {
        row["step"]: row[monitor] for row in read_rows(workdir) if row["split"] == "validation"
    }
    saved = SavedCheckpoints(workdir.checkpoints, monitor)
    step = saved.best_step()
    if step != last and step in validation:
        restored = saved.restore_best(experiment.abstract_state())
        assert restored is not None  # the run has saved at its end
        step, state, _ = restored
        means, _ = evaluate(experiment.parallel.replicate(state.variables))
    if step not in validation:
        return {}
    return {"step": step, "monitor": monitor, f"validation_{monitor}": validation[step], **means}


def _save_examples(
    experiment: Experiment, workdir: Workdir, name: str, examples: dict[str, np.ndarray]
) -> None:
    """predictions.npz: per example of split `name` its labels, probability, and path or index."""
    files = list(experiment.dataset.files.get(name, ()))
    names = np.array(files) if files else np.arange(len(examples["label"]))
    arrays: dict[str, Any] = {"path" if files else "index": names, **examples}
    np.savez(workdir.examples, **arrays)


def draw_missing(config: Config, workdir: Workdir) -> None:
    """Makes those of a finished run's pictures and examples again that have been deleted."""
    missing = [p for p in (workdir.examples, *_pictures(workdir)) if not p.exists()]
    if not missing:
        return
    try:
        experiment, name = make_experiment(config, workdir), workdir.read("result")["split"]
        if workdir.examples in missing:
            saved = SavedCheckpoints(workdir.checkpoints, config.monitor)
            restored = saved.restore_latest(experiment.abstract_state())
            if restored is None:
                raise UserError(f"{workdir.path} has no checkpoint")
            views = read_views(config.data.views, experiment.facts.image_shape)
            evaluate = experiment.evaluator(experiment.dataset.splits[name], views)
            variables = experiment.parallel.replicate(restored[1].variables)
            _save_examples(experiment, workdir, name, evaluate(variables)[1])
        for path in missing:
            _draw(path, experiment, workdir, name)
        print(f"made again: {', '.join(path.name for path in missing)}")
    except UserError as error:
        print(
            f"not made again: {', '.join(path.name for path in missing)}: {error}", file=sys.stderr
        )


def _pictures(workdir: Workdir) -> tuple[Path, ...]:
    return workdir.curves, workdir.confusion_matrix, workdir.predictions


def _draw(path: Path, experiment: Experiment, workdir: Workdir, name: str) -> None:
    """The picture `path` of a run measured on split `name`, from its files; no other file."""
    if path == workdir.curves:
        pictures.draw_curves(path, read_rows(workdir))
        return
    if path not in _pictures(workdir):
        return
    with np.load(workdir.examples) as saved:
        examples = dict(saved)
    labels, predictions = examples["true_label"], examples["label"]
    class_names = experiment.facts.class_names
    if path == workdir.confusion_matrix:
        pictures.draw_confusion_matrix(path, labels, predictions, class_names)
        return
    shown = pictures.choose_examples(labels, predictions, examples["probability"])
    files = examples.get("path", examples.get("index"))
    assert files is not None
    wrong, count = int(np.sum(labels != predictions)), len(labels)
    pictures.draw_predictions(
        path,
        experiment.dataset.splits[name].load(shown)[0],
        labels[shown],
        predictions[shown],
        examples["probability"][shown],
        class_names,
        title=f"{wrong} of {count} {name} images wrong ({wrong / count:.2%})",
        names=[str(file) for file in files[shown]],
    )


def print_result(workdir: Workdir) -> None:
    """The table, where the files are, and the line that programs read."""
    result: dict[str, Any] = workdir.read("result")
    print(format_report(result["report"]))
    print(f"\nin {workdir.path}: {' '.join(workdir.contents())}")
    if "without_views" in result:
        plain = result["without_views"]
        print(f"without data.views: accuracy {plain['accuracy']:.4f} · loss {plain['loss']:.4f}")
    print(_describe_checkpoints(result))
    print(
        f"{result['split']} accuracy {result['accuracy']:.4f} · {result['images']} images · "
        f"params {result['params_sha256']} · {workdir.path}"
    )


def _describe_checkpoints(result: dict[str, Any]) -> str:
    """Which checkpoint was measured, and the best one's figures beside it."""
    line, best = f"measured: the last step, {result['steps']}", result.get("best")
    if best is None:  # without validation, and in runs of old versions
        return line
    by = f"best by validation {best['monitor']} ({best['validation_' + best['monitor']]:.4f})"
    if best["step"] == result["steps"]:
        return f"{line}, which is the {by}"
    figures = f"{result['split']} accuracy {best['accuracy']:.4f} · loss {best['loss']:.4f}"
    return f"{line}; the {by} is step {best['step']}: {figures}"
