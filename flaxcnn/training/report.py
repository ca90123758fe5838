"""The end of a run: exact test figures, the table, the pictures, the machine-readable line."""

from typing import Any

import numpy as np

from flaxcnn.data.augment import read_views
from flaxcnn.tasks import pictures
from flaxcnn.tasks.classification import format_report
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.logging import read_rows
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.workdir import Workdir


def report_run(experiment: Experiment, workdir: Workdir, state: TrainState) -> None:
    """Measures the final parameters on the test split; writes pictures, examples and result.json.

    Where a set has no test split the validation split stands in for it, and is named. With
    `data.views` all of it is over these views, but for the metrics called "without_views".
    result.json comes last: with it the run counts as finished.
    """
    splits = experiment.dataset.splits
    name = next(name for name in ("test", "validation", "train") if name in splits)
    split = splits[name]
    variables = experiment.parallel.replicate(state.variables)
    views = read_views(experiment.config.data.views, experiment.facts.image_shape)
    plain = {"without_views": experiment.evaluator(split)(variables)[0]} if views else {}
    means, examples = experiment.evaluator(split, views)(variables)
    labels, predictions = examples["true_label"], examples["label"]
    facts = experiment.facts
    report = experiment.task.report(labels, predictions, facts.train_images, facts.train_draws)
    pictures.draw_curves(workdir.curves, read_rows(workdir))
    pictures.draw_confusion_matrix(
        workdir.confusion_matrix,
        labels,
        predictions,
        experiment.facts.class_names,
    )
    np.savez(
        workdir.examples,
        true_label=labels,
        label=predictions,
        probability=examples["probability"],
    )
    shown = pictures.choose_examples(labels, predictions, examples["probability"])
    wrong = int(np.sum(labels != predictions))
    pictures.draw_predictions(
        workdir.predictions,
        split.load(shown)[0],
        labels[shown],
        predictions[shown],
        examples["probability"][shown],
        experiment.facts.class_names,
        title=f"{wrong} of {len(split)} {name} images wrong ({wrong / len(split):.2%})",
    )
    result = {
        "split": name,
        "images": len(split),
        **means,
        **plain,
        "report": report,
        "steps": int(state.step),
        "parameters": experiment.facts.parameters,
        "params_sha256": hash_tree({"params": state.params, "batch_stats": state.batch_stats}),
    }
    workdir.write("result", result)


def print_result(workdir: Workdir) -> None:
    """The table, where the files are, and the line that programs read."""
    result: dict[str, Any] = workdir.read("result")
    print(format_report(result["report"]))
    print(
        f"\nin {workdir.path}: config.json environment.json run.json result.json metrics.jsonl "
        f"tensorboard/ {workdir.checkpoints.name}/ predictions.npz curves.png confusion_matrix.png "
        "predictions.png"
    )
    if "without_views" in result:
        plain = result["without_views"]
        print(f"without data.views: accuracy {plain['accuracy']:.4f} · loss {plain['loss']:.4f}")
    print(
        f"{result['split']} accuracy {result['accuracy']:.4f} · {result['images']} images · "
        f"params {result['params_sha256']} · {workdir.path}"
    )
