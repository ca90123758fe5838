"""Metrics, predictions and reports against scikit-learn."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from flaxcnn.errors import UserError
from flaxcnn.tasks.classification import Classification, format_report
from flaxcnn.tasks.classification_pictures import count_confusions
from flaxcnn.tasks.losses import make_loss

RNG = np.random.default_rng(1)


def make_task(classes, name="cross_entropy"):
    return Classification(tuple(f"class {i}" for i in range(classes)), make_loss(name=name))


def report_of(task, labels, predictions):
    return task.report({}, {"true_label": labels, "label": predictions})


def trained_on(images, draws):
    return dataclasses.replace(make_task(2), train_images=images, train_draws=draws)


def test_metrics_average_to_scikit_learns():
    logits = RNG.normal(size=(200, 12)).astype(np.float32)
    labels = RNG.integers(0, 12, 200).astype(np.int32)
    metrics = jax.jit(make_task(12).measure)(logits, labels)
    assert set(metrics) == {"loss", "accuracy", "top5_accuracy"}
    assert all(m.shape == (200,) and m.dtype == jnp.float32 for m in metrics.values())
    accuracy = accuracy_score(labels, logits.argmax(-1))
    np.testing.assert_allclose(metrics["accuracy"].mean(), accuracy, rtol=1e-6)
    top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(12))
    np.testing.assert_allclose(metrics["top5_accuracy"].mean(), top5, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss"].mean(), log_loss(labels, softmax(logits, -1), labels=range(12)), rtol=1e-5
    )


def test_up_to_five_classes_have_no_top5():
    assert set(make_task(5).measure(np.zeros((2, 5), np.float32), np.array([0, 1]))) == {
        "loss",
        "accuracy",
    }


def test_top5_breaks_ties_like_argmax_and_never_counts_nan():
    labels = np.arange(8, dtype=np.int32)
    equal = jax.jit(make_task(8).measure)(np.zeros((8, 8), np.float32), labels)
    np.testing.assert_array_equal(equal["top5_accuracy"], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(equal["accuracy"], [1, 0, 0, 0, 0, 0, 0, 0])
    broken = jax.jit(make_task(8).measure)(np.full((8, 8), np.nan, np.float32), labels)
    np.testing.assert_array_equal(broken["top5_accuracy"], np.zeros(8))


@pytest.mark.parametrize(("outputs", "bad"), [(7, np.nan), (1, np.nan), (1, np.inf)])
def test_logits_that_are_no_numbers_are_right_for_nobody(outputs, bad):
    """argmax is the place of a NaN, which one label in seven has."""
    task, classes = make_task(max(outputs, 2), "mse"), max(outputs, 2)
    labels = np.arange(3 * classes, dtype=np.int32) % classes
    logits = np.eye(classes, outputs, dtype=np.float32)[labels] - np.float32(outputs == 1) / 2
    logits[0, 0] = logits[classes + 1] = bad
    metrics = task.measure(logits, labels)
    answers = task.predict(logits)
    predicted, probability = (np.asarray(answers[k]) for k in ("label", "probability"))
    wrong = np.array([0, classes + 1])
    assert (predicted[wrong] == -1).all() and np.isnan(probability[wrong]).all()
    for name in metrics.keys() - {"loss"}:
        assert (np.asarray(metrics[name])[wrong] == 0).all()
    report = report_of(task, labels, predicted)
    assert report["accuracy"] == np.mean(metrics["accuracy"])
    assert [c["support"] for c in report["classes"]] == [3] * classes
    assert count_confusions(labels, predicted, classes).sum() == len(labels) - 2


def test_predictions_of_many_outputs():
    logits = RNG.normal(size=(50, 7)).astype(np.float32)
    task = make_task(7)
    answers = jax.jit(task.predict)(logits)
    labels, probabilities = answers["label"], answers["probability"]
    assert labels.dtype == jnp.int32 and probabilities.dtype == jnp.float32
    expected = softmax(logits.astype(float), -1)
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    np.testing.assert_allclose(probabilities, expected.max(-1), rtol=1e-5)
    np.testing.assert_allclose(task.answer(logits), expected, rtol=1e-5)


def test_predictions_of_one_sigmoid_output():
    logits = np.array([[-3.0], [-0.1], [0.1], [40.0]], np.float32)
    task = make_task(2, "binary_cross_entropy")
    answers = jax.jit(task.predict)(logits)
    labels, probabilities = answers["label"], answers["probability"]
    p = expit(logits[:, 0].astype(float))
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    np.testing.assert_allclose(probabilities, np.maximum(p, 1 - p), rtol=1e-5)
    np.testing.assert_allclose(task.answer(logits), np.stack([1 - p, p], -1), rtol=1e-5, atol=1e-7)
    accuracy = task.measure(logits, np.array([0, 1, 1, 0], np.int32))["accuracy"]
    np.testing.assert_array_equal(accuracy, [1, 0, 1, 0])


@pytest.mark.parametrize(("outputs", "classes"), [(10, 10), (2, 2), (1, 2)])
def test_fitting_numbers_of_outputs(outputs, classes):
    logits = jax.ShapeDtypeStruct((1, outputs), jnp.float32)
    assert make_task(classes).check(logits) is None


@pytest.mark.parametrize(("outputs", "classes"), [(1000, 10), (1, 3), (3, 2), (1, 10)])
def test_other_numbers_of_outputs_are_refused(outputs, classes):
    with pytest.raises(UserError, match=rf"model.kwargs.num_classes.* {outputs} .* {classes} "):
        make_task(classes).check(jax.ShapeDtypeStruct((1, outputs), jnp.float32))


@pytest.mark.parametrize(("low", "high"), [(0, 9), (2, 6)])
def test_report_is_scikit_learns(low, high):
    """Also where classes never occur (0, 1, 6..8) and are never predicted (0, 8)."""
    labels = RNG.integers(low, high, 300)
    predictions = np.where(RNG.random(300) < 0.6, labels, RNG.integers(1, 8, 300))
    report = report_of(make_task(9), labels, predictions)
    columns = precision_recall_fscore_support(labels, predictions, labels=range(9), zero_division=0)
    for i, row in enumerate(zip(*columns, strict=True)):
        reported = report["classes"][i]
        assert reported["name"] == f"class {i}"
        found = [reported[key] for key in ("precision", "recall", "f1", "support")]
        np.testing.assert_allclose(found, row, rtol=1e-12)
    macro = precision_recall_fscore_support(
        labels, predictions, labels=range(9), average="macro", zero_division=0
    )
    found = [report["macro"][key] for key in ("precision", "recall", "f1")]
    np.testing.assert_allclose(found, macro[:3], rtol=1e-12)
    np.testing.assert_allclose(report["accuracy"], accuracy_score(labels, predictions))
    assert report["images"] == 300
    assert json.loads(json.dumps(report)) == report
    np.testing.assert_array_equal(
        count_confusions(labels, predictions, 9),
        confusion_matrix(labels, predictions, labels=range(9)),
    )


def test_report_as_a_table():
    report = report_of(make_task(3), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert format_report(report).splitlines() == [
        "class          precision  recall      f1  images",
        "class 0           1.0000  0.5000  0.6667       2",
        "class 1           0.6667  1.0000  0.8000       2",
        "class 2           0.0000  0.0000  0.0000       0",
        "",
        "macro average     0.5556  0.5000  0.4889       4",
        "accuracy          0.7500",
    ]


def test_report_shows_what_training_saw_of_each_class():
    labels = np.array([0, 0, 1])
    report = report_of(trained_on((10, 2), (10, 20)), labels, labels)
    assert [c["train_images"] for c in report["classes"]] == [10, 2]
    assert [c["train_draws"] for c in report["classes"]] == [10, 20]
    assert json.loads(json.dumps(report)) == report
    assert format_report(report).splitlines() == [
        "class          precision  recall      f1  images  train images  train draws",
        "class 0           1.0000  1.0000  1.0000       2            10           10",
        "class 1           1.0000  1.0000  1.0000       1             2           20",
        "",
        "macro average     1.0000  1.0000  1.0000       3",
        "accuracy          1.0000",
    ]
    once = format_report(report_of(trained_on((10, 2), (10, 2)), labels, labels)).splitlines()
    assert once[0].endswith("images  train images") and once[1].endswith("2            10")


def test_many_classes_show_the_best_and_the_worst_that_occur():
    labels = np.arange(40).repeat(2)
    predictions = labels.copy()
    predictions[::2][:20] = 40  # classes 0..19 half right; 40 never occurs
    predictions[:2] = 40  # class 0 never right
    text = format_report(report_of(make_task(41), labels, predictions))
    best, worst = text.split("\n\n")[:2]
    assert best.splitlines()[0].startswith("5 best classes")
    assert [line.split()[1] for line in best.splitlines()[1:]] == ["20", "21", "22", "23", "24"]
    assert [line.split()[1] for line in worst.splitlines()[1:]] == ["16", "17", "18", "19", "0"]
    assert len({len(line) for line in text.splitlines() if line and "accuracy" not in line}) == 1


def test_long_names_are_shortened():
    task = Classification(("a" * 50, "b"))
    lines = format_report(report_of(task, np.array([0]), np.array([0]))).splitlines()
    assert lines[1].startswith("a" * 31 + "…  ")
    assert len({len(line) for line in lines[:3]}) == 1
