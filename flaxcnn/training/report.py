"""The end of a run: exact test figures, the table, the pictures, the machine-readable line."""

from typing import Any

import numpy as np

from flaxcnn.tasks import pictures
from flaxcnn.tasks.classification import format_report
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.logging import read_rows
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.workdir import Workdir


def report_run(experiment: Experiment, workdir: Workdir, state: TrainState) -> None:
    """Measures the final parameters on the test split; writes the pictures and result.json.

    Where a set has no test split the validation split stands in for it, and is named. result.json
    comes last: with it the run counts as finished.
    """
    splits = experiment.dataset.splits
    name = next(name for name in ("test", "validation", "train") if name in splits)
    split = splits[name]
    variables = experiment.parallel.replicate(state.variables)
    means, examples = experiment.evaluator(split)(variables)
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
        "tensorboard/ checkpoints/ curves.png confusion_matrix.png predictions.png"
    )
    print(
        f"{result['split']} accuracy {result['accuracy']:.4f} · {result['images']} images · "
        f"params {result['params_sha256']} · {workdir.path}"
    )
