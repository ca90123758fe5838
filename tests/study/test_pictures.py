"""The pictures of a study: what their lines and cells hold."""

import numpy as np

from flaxcnn.study.pictures import draw_case_curves
from flaxcnn.tasks.classification_pictures import draw_case_confusions
from flaxcnn.tasks.task import Metric

ACCURACY = Metric("accuracy", "max", "%")


def rows(losses, accuracies):
    """metrics.jsonl of a run of two calls an epoch, and validation at its end."""
    train = [
        {"split": "train", "epoch": (i + 1) / 2, "loss": loss} for i, loss in enumerate(losses)
    ]
    return train + [
        {"split": "validation", "epoch": i + 1, "loss": 9.0, "accuracy": accuracy}
        for i, accuracy in enumerate(accuracies)
    ]


def test_curves_are_means_over_calls_and_seeds():
    seeds = [rows([4, 2, 1, 0], [0.25, 0.5]), rows([2, 0, 2, 1], [0.75, 0.5])]
    figure = draw_case_curves({"a": seeds, "b": [rows([1, 1], [])]}, ACCURACY)
    losses, accuracies = figure.axes
    assert [line.get_label() for line in losses.lines] == ["a", "b"]
    # Epoch 1: (4 + 2) / 2 and (2 + 0) / 2; epoch 2: (1 + 0) / 2 and (2 + 1) / 2.
    np.testing.assert_allclose(losses.lines[0].get_xydata(), [[1, 2], [2, 1]])
    band = losses.collections[0].get_paths()[0].vertices[:, 1]
    assert sorted(set(band)) == [0.5, 1, 1.5, 3]
    np.testing.assert_allclose(losses.lines[1].get_xydata(), [[1, 1]])
    np.testing.assert_allclose(accuracies.lines[0].get_xydata(), [[1, 50], [2, 50]])
    assert len(accuracies.lines) == 1  # "b" has not been validated
    assert all(tick == round(tick) for tick in losses.get_xticks())  # whole epochs


def test_an_epoch_that_not_all_seeds_have_is_left_out():
    figure = draw_case_curves({"a": [rows([1, 1, 3, 3], []), rows([3, 3], [])]}, ACCURACY)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[1, 2]])


def test_confusions_are_shares_of_the_true_class():
    counts = np.array([[3, 1], [0, 1]])
    panels = draw_case_confusions(dict.fromkeys("abcd", counts), ["cat", "dog"]).axes
    assert len(panels) == 6 and not panels[4].axison
    assert panels[0].get_title() == "a: 80.00%"
    cells = {tuple(t.get_position()): t.get_text() for t in panels[0].texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (0, 1): "0", (1, 1): "100"}
