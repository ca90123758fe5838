"""The start and the end of a run: what it is, exact test figures, tables and pictures."""

import sys
from typing import Any

import jax
import numpy as np

from flaxcnn.data.record import listing
from flaxcnn.errors import UserError
from flaxcnn.tasks.figures import draw_curves, save_figure
from flaxcnn.tasks.registry import find_task
from flaxcnn.tasks.task import Examples, Task
from flaxcnn.training.checkpoint import SavedCheckpoints
from flaxcnn.training.config import Config
from flaxcnn.training.environment import count_threads
from flaxcnn.training.evaluate import Evaluation, Evaluator
from flaxcnn.training.experiment import Experiment, make_experiment
from flaxcnn.training.logger import read_rows
from flaxcnn.training.loss_scale import LossScaleState
from flaxcnn.training.parts import find_monitor
from flaxcnn.training.sharding import from_first, gather, is_first, tree_from_first
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.workdir import Workdir

CURVES = "curves.png"


def print_start(experiment: Experiment) -> None:
    """What is about to be trained, on what."""
    facts, plan, device = experiment.facts, experiment.plan, jax.devices()[0]
    splits = ", ".join(f"{count:,} {name}" for name, count in facts.examples.items())
    threads = f", {count_threads()} threads" if device.platform == "cpu" else ""
    extended = f", {sum(facts.extended)} of them added" if facts.extended else ""
    images = f"{splits} images, {'x'.join(map(str, facts.image_shape))}"
    print(f"{experiment.config.model.name}: {facts.parameters:,} parameters")
    classes = f", of {len(facts.class_names)} classes" if facts.class_names else ""
    print(f"{experiment.config.data.source}: {images}{classes}")
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
    replaced = [
        error for of_process in gather(experiment.dataset.replaced()) for error in of_process
    ]
    name = next(name for name in ("test", "validation", "train") if name in splits)
    split = splits[name]
    variables = experiment.parallel.replicate(state.variables)
    views = experiment.views
    plain = {"without_views": experiment.evaluator(split)(variables).figures} if views else {}
    evaluate = experiment.evaluator(split, views)
    measured, facts = evaluate(variables), experiment.facts
    if is_first():
        _save_examples(experiment, workdir, name, measured)
        for file in _pictures(experiment.task):
            _draw(file, experiment, workdir, name)
    best = _measure_best(experiment, workdir, evaluate, int(state.step), measured.figures)
    result = {
        "split": name,
        "images": len(split),
        **measured.figures,
        **plain,
        **({"best": best} if best else {}),
        **({"extended": facts.extended} if facts.extended else {}),
        **({"replaced": replaced} if replaced else {}),
        "report": measured.report,
        "steps": int(state.step),
        **_describe_scaling(state),
        "parameters": experiment.facts.parameters,
        "params_sha256": hash_tree({"params": state.params, "batch_stats": state.batch_stats}),
    }
    if is_first():
        workdir.write("result", result)


def _describe_scaling(state: TrainState) -> dict[str, float]:
    """Which of the steps were skipped, in float16."""
    scaling = state.opt_state
    if not isinstance(scaling, LossScaleState):
        return {}
    return {"skipped_steps": int(scaling.skipped_steps), "loss_scale": float(scaling.scale)}


def _measure_best(
    experiment: Experiment,
    workdir: Workdir,
    evaluate: Evaluator,
    last: int,
    figures: dict[str, float],
) -> dict[str, Any]:
    """The best checkpoint by `monitor`, as `flaxcnn evaluate` takes it; {} if none was validated.

    `figures` are those of the `last` step.
    """
    monitor, restored, step = find_monitor(experiment.config), None, None
    validation = {
        row["step"]: row[monitor.name] for row in read_rows(workdir) if row["split"] == "validation"
    }
    saved = SavedCheckpoints(workdir.checkpoints, monitor)
    if is_first() and (step := saved.best_step()) != last and step in validation:
        restored = saved.restore_best(experiment.abstract_state())
        assert restored is not None  # the run has saved at its end
        step = restored[0]
    step, validation, other = from_first((step, validation, restored is not None))
    if other:
        state = tree_from_first(restored and restored[1], experiment.abstract_state)
        figures = evaluate(experiment.parallel.replicate(state.variables)).figures
    if step not in validation:
        return {}
    by = monitor.name
    return {"step": step, "monitor": by, f"validation_{by}": validation[step], **figures}


def _save_examples(
    experiment: Experiment, workdir: Workdir, split: str, measured: Evaluation
) -> None:
    """predictions.npz: what was predicted of each example of `split`, and its path or index."""
    files = list(experiment.dataset.files.get(split, ()))
    count = len(experiment.dataset.splits[split])
    names = {"path": np.array(files)} if files else {"index": np.arange(count)}
    kept: dict[str, Any] = {**names, "loss": measured.losses, **measured.arrays}
    np.savez(workdir.examples, **kept)


def draw_missing(config: Config, workdir: Workdir) -> None:
    """Makes those of a finished run's pictures and examples again that have been deleted."""
    files = (workdir.examples.name, *_pictures(find_task(config.task.name)))
    missing = [file for file in files if not (workdir.path / file).exists()]
    if not missing:
        return
    try:
        experiment, split = make_experiment(config, workdir), workdir.read("result")["split"]
        if workdir.examples.name in missing:
            saved = SavedCheckpoints(workdir.checkpoints, find_monitor(config))
            restored = saved.restore_latest(experiment.abstract_state())
            if restored is None:
                raise UserError(f"{workdir.path} has no checkpoint")
            evaluate = experiment.evaluator(experiment.dataset.splits[split], experiment.views)
            variables = experiment.parallel.replicate(restored[1].variables)
            _save_examples(experiment, workdir, split, evaluate(variables))
        for file in missing:
            if file != workdir.examples.name:
                _draw(file, experiment, workdir, split)
        print(f"made again: {', '.join(missing)}")
    except UserError as error:
        print(f"not made again: {', '.join(missing)}: {error}", file=sys.stderr)


def _pictures(task: Task | type[Task]) -> tuple[str, ...]:
    return CURVES, *task.pictures


def _draw(file: str, experiment: Experiment, workdir: Workdir, split: str) -> None:
    """The picture `file` of a run measured on `split`, from its files; no other file."""
    task = experiment.task
    if file == CURVES:
        figure = draw_curves(read_rows(workdir), task.monitor)
    else:
        with np.load(workdir.examples) as saved:
            arrays = dict(saved)
        names = [str(name) for name in arrays.pop("path" if "path" in arrays else "index")]
        load = experiment.dataset.splits[split].load
        figure = task.draw(file, Examples(arrays, names, split, lambda chosen: load(chosen)[0]))
    save_figure(figure, workdir.path / file)


def print_result(workdir: Workdir) -> None:
    """The table, where the files are, and the line that programs read."""
    task: Any = find_task(workdir.config().task.name)
    result, figure = workdir.read("result"), task.monitor.name
    print(task.format(result["report"]))
    print(f"\nin {workdir.path}: {' '.join(workdir.contents((CURVES, *task.pictures)))}")
    if "without_views" in result:
        plain = result["without_views"]
        print(f"without data.views: {figure} {plain[figure]:.4f} · loss {plain['loss']:.4f}")
    if replaced := result.get("replaced"):
        count = f"{len(replaced)} image{'s' * (len(replaced) > 1)}"
        print(f"replaced by the next that can be read: {count}: {listing(replaced)}")
    if "skipped_steps" in result:
        skipped, steps = result["skipped_steps"], result["steps"]
        scale = f"the loss scale is {result['loss_scale']:g}"
        print(f"skipped, as a gradient was not finite: {skipped} of {steps} steps; {scale}")
    print(_describe_checkpoints(result, figure))
    print(
        f"{result['split']} {figure} {result[figure]:.4f} · {result['images']} images · "
        f"params {result['params_sha256']} · {workdir.path}"
    )


def _describe_checkpoints(result: dict[str, Any], figure: str) -> str:
    """Which checkpoint was measured, and the best one's figures beside it."""
    line, best = f"measured: the last step, {result['steps']}", result.get("best")
    if best is None:  # without validation, and in runs of old versions
        return line
    by = f"best by validation {best['monitor']} ({best['validation_' + best['monitor']]:.4f})"
    if best["step"] == result["steps"]:
        return f"{line}, which is the {by}"
    figures = f"{result['split']} {figure} {best[figure]:.4f} · loss {best['loss']:.4f}"
    return f"{line}; the {by} is step {best['step']}: {figures}"
