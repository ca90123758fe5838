"""The pictures exist, have the right size and show what they should."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from flaxcnn.tasks import classification_pictures as pictures
from flaxcnn.tasks import figures
from flaxcnn.tasks.figures import draw_curves, save_figure
from flaxcnn.tasks.task import Metric

RNG = np.random.default_rng(2)
ACCURACY = Metric("accuracy", "max", "%")


def read(path: Path) -> np.ndarray:
    """The picture as [H, W, 3] in 0..255."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no unfinished file beside it
    return (255 * matplotlib.image.imread(path)[..., :3]).round().astype(int)


def count(picture: np.ndarray, color: str) -> int:
    """How many pixels have exactly this colour, as #RRGGBB."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == rgb).all(axis=-1).sum())


@pytest.mark.parametrize("classes", [2, 12, 60])
def test_confusion_matrix(tmp_path, classes):
    labels = np.arange(classes).repeat(3)
    names = [rf"{i} $\frac$" for i in range(classes)]  # not to be read as a formula
    save_figure(pictures.draw_confusion_matrix(labels, labels, names), tmp_path / "c.png")
    picture = read(tmp_path / "c.png")
    inches = {2: (5.4, 4.4), 12: (8.44, 7.44), 60: (10.4, 9.4)}[classes]
    assert picture.shape[:2] == (int(120 * inches[1]), int(120 * inches[0]))
    # A perfect network: the diagonal, the dark end of the colour map, is 1 / classes of the cells,
    # and the light end the rest.
    dark, light = count(picture, "#08306b"), count(picture, "#f7fbff")
    assert 0.5 < dark / (light / (classes - 1)) < 1.5


def test_confusion_matrix_has_true_classes_in_rows(tmp_path):
    """Everything is predicted as class 0: the left column is dark, the right one light."""
    labels = np.array([0, 1, 1])
    save_figure(
        pictures.draw_confusion_matrix(labels, np.zeros(3, int), ["a", "b"]), tmp_path / "c.png"
    )
    dark = (read(tmp_path / "c.png") == [0x08, 0x30, 0x6B]).all(-1)
    rows, columns = np.flatnonzero(dark.sum(1) > 50), np.flatnonzero(dark.sum(0) > 50)
    assert len(rows) > 1.8 * len(columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_errors_are_red(tmp_path, channels):
    images = RNG.integers(0, 256, (10, 8, 8, channels), dtype=np.uint8)
    labels, probabilities = np.arange(10) % 3, np.full(10, 0.7)
    names = ["cat", "dog", "frog"]
    red = []
    for wrong in range(3):
        predictions = labels.copy()
        predictions[:wrong] = (labels[:wrong] + 1) % 3
        figure = pictures.draw_predictions(images, labels, predictions, probabilities, names)
        save_figure(figure, tmp_path / "p.png")
        picture = read(tmp_path / "p.png")
        assert picture.shape[:2] == (round(120 * (1.75 * 2 + 0.7)), round(120 * 1.35 * 8))
        red.append(count(picture, figures.RED))
    assert red[0] < 5  # noise of RGB images
    assert red[1] > 500 and abs(red[2] - 2 * red[1]) < 0.2 * red[1]


def test_titles_of_errors_are_red(tmp_path):
    """Above the frame of the image, where only its title is."""
    images = np.zeros((1, 8, 8, 1), np.uint8)
    arguments = (images, np.array([0]), np.array([1]), np.array([0.9]), ["cat", "dog"])
    save_figure(pictures.draw_predictions(*arguments, title="1 of 1 wrong"), tmp_path / "p.png")
    picture = read(tmp_path / "p.png")
    frame = [int(figures.RED[i : i + 2], 16) for i in (1, 3, 5)]
    red = (picture == frame).all(-1)
    first_of_frame = np.flatnonzero(red.sum(1) > 50)[0]
    assert red[: first_of_frame - 3].sum() > 20


def test_grey_and_colour_are_drawn_as_they_are(tmp_path):
    grey = np.full((1, 4, 4, 1), 0x55, np.uint8)
    colour = np.broadcast_to(np.array([10, 200, 30], np.uint8), (1, 4, 4, 3))
    for images, expected in ((grey, "#555555"), (colour, "#0ac81e")):
        zero = np.array([0])
        figure = pictures.draw_predictions(images, zero, zero, np.array([1.0]), ["猫"])
        save_figure(figure, tmp_path / "p.png")
        assert count(read(tmp_path / "p.png"), expected) > 5000


def test_examples_are_the_surest_errors_and_then_right_ones():
    labels = np.zeros(1000, int)
    predictions = (np.arange(1000) % 10 == 0).astype(int)  # 100 wrong
    probabilities = np.linspace(0.0, 1.0, 1000)
    chosen = pictures.choose_examples(labels, predictions, probabilities)
    assert len(set(chosen)) == 48
    np.testing.assert_array_equal(chosen[:24], np.arange(990, 750, -10))
    assert (predictions[chosen[24:]] == 0).all()
    assert chosen[24] == 1 and chosen[-1] == 999


@pytest.mark.parametrize(("wrong", "right"), [(0, 100), (3, 100), (100, 5), (100, 0), (7, 6)])
def test_examples_fill_the_grid(wrong, right):
    predictions = np.arange(wrong + right) < wrong
    chosen = pictures.choose_examples(
        np.zeros(wrong + right), predictions, np.ones(wrong + right), count=48
    )
    assert len(set(chosen)) == min(48, wrong + right)
    assert (chosen < wrong).sum() == min(wrong, max(24, 48 - right))


def test_curves(tmp_path):
    rows = [
        {"step": 10 * i, "epoch": i / 2, "split": "train", "loss": 2.0 / i, "accuracy": 0.5}
        | {"learning_rate": 0.1 / i, "images_per_second": 9.0}
        for i in range(1, 9)
    ]
    train_only = tmp_path / "train" / "c.png"
    train_only.parent.mkdir()
    save_figure(draw_curves(rows, ACCURACY), train_only)
    picture = read(train_only)
    assert picture.shape[:2] == (480, 1560)
    train, validation, test = (figures.COLORS[s] for s in ("train", "validation", "test"))
    for panel in np.split(picture, 3, axis=1):
        assert count(panel, train) > 100
    assert count(picture, validation) == count(picture, test) == 0
    rows += [
        {"step": 20 * i, "epoch": float(i), "split": "validation", "loss": 1 / i, "accuracy": 0.4}
        for i in range(1, 5)
    ]
    rows += [{"step": 80, "epoch": 4.0, "split": "test", "loss": 0.3, "accuracy": 0.45}]
    complete = tmp_path / "all" / "c.png"
    complete.parent.mkdir()
    save_figure(draw_curves(rows, ACCURACY), complete)
    loss, accuracy, rate = np.split(read(complete), 3, axis=1)
    for panel in (loss, accuracy):
        assert count(panel, validation) > 100
        assert count(panel, test) > 80  # two diamonds; the legend's line alone has 35
    assert count(rate, validation) == count(rate, test) == 0


def test_numbers_that_are_none_leave_no_trace(tmp_path):
    """Also not in the scale of the loss, logarithmic here for its range of 1 to 100."""
    row = {"step": 1, "epoch": 1.0, "split": "train", "loss": 1.0, "accuracy": 0.1}
    rows = [row, row | {"epoch": 2.0, "loss": 100.0}]
    broken = [row | {"epoch": 1.5, "loss": loss} for loss in (float("nan"), float("inf"), None)]
    save_figure(draw_curves(rows, ACCURACY), tmp_path / "c.png")
    expected = read(tmp_path / "c.png")
    save_figure(draw_curves(rows + broken, ACCURACY), tmp_path / "c.png")
    picture = read(tmp_path / "c.png")
    assert (picture[:, :520] == expected[:, :520]).all()


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    save_figure(draw_curves([], ACCURACY), path)
    before = path.read_bytes()

    def fill_disk(figure, file, **kwargs):
        Path(file).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        save_figure(draw_curves([], ACCURACY), path)
    assert path.read_bytes() == before
    read(path)


def test_others_may_read_a_picture(tmp_path):
    """As any other file of the run; temporary files are for their owner alone."""
    save_figure(draw_curves([], ACCURACY), tmp_path / "c.png")
    (tmp_path / "text").write_text("")
    assert (tmp_path / "c.png").stat().st_mode == (tmp_path / "text").stat().st_mode


def test_pyplot_is_not_needed():
    """Figures come from matplotlib.figure, so that no display is asked for and none leaks."""
    assert "pyplot" not in Path(figures.__file__).read_text()


def test_training_curves_are_faint_under_their_means_by_epoch():
    rows = [
        {"split": "train", "epoch": epoch, "loss": loss, "learning_rate": 0.1}
        for epoch, loss in [(0.5, 4.0), (1.0, 2.0), (1.5, 1.0), (2.0, math.nan), (2.5, 0.5)]
    ]
    rows.append({"split": "validation", "epoch": 1.0, "loss": 3.0})
    losses, _, rates = draw_curves(rows, ACCURACY).axes
    raw, means, validation = losses.lines
    assert raw.get_alpha() == 0.3 and raw.get_label().startswith("_")
    np.testing.assert_array_equal(raw.get_ydata(), [4, 2, 1, 0.5])
    np.testing.assert_array_equal(means.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(means.get_ydata(), [3, 1, 0.5])
    assert [line.get_label() for line in (means, validation)] == ["train", "validation"]
    assert len(rates.lines) == 1  # a rate has no noise


def test_pictures_of_predictions_name_files_and_say_where_there_is_no_class():
    figure = pictures.draw_predictions(
        np.zeros((2, 4, 4, 1), np.uint8),
        np.array([0, 1]),
        np.array([0, -1]),
        np.array([0.5, np.nan]),
        ["cat", "dog"],
        names=["cat/1.png", "a/very/long/path/to/dog/2.png"],
    )
    first, second = figure.axes
    assert first.get_xlabel() == "cat/1.png"
    assert second.get_xlabel() == "…g/path/to/dog/2.png"
    assert second.get_title().startswith("none\n")
