"""The task: outputs that say the truth, thresholds, mistakes, answers in a file's own pixels."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.boxes import encode_cells, encode_priors
from flaxcnn.data.splits import ArraySplit
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.tasks.detection import measures
from flaxcnn.tasks.detection.detection import Detection
from flaxcnn.tasks.task import Examples, Setting

NAMES = ("cat", "dog")
SIZE = (64, 96)
needs_pycocotools = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="needs the extra detection"
)


def make_targets():
    """Three images of 64x96: two objects, one and a crowd, none; read from files twice as large."""
    boxes = np.zeros((3, 3, 4), np.float32)
    boxes[0, :2] = [[4, 6, 20, 30], [50, 20, 90, 60]]
    boxes[1, :2] = [[33, 33, 63, 63], [0, 0, 30, 10]]
    valid = np.array([[True, True, False], [True, True, False], [False] * 3])
    labels = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], np.int32)
    crowd = np.zeros((3, 3), bool)
    crowd[1, 1] = True
    area = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) * 0.8).astype(np.float32)
    placed = np.tile(np.array([0.5, 0.5, 0, 0, 192, 128], np.float32), (3, 1))
    return Boxes(boxes, valid, labels, crowd, area, placed=placed)


def make(**kwargs):
    targets = make_targets()
    split = ArraySplit(np.zeros((3, *SIZE, 3), np.uint8), targets)
    setting = Setting(NAMES, (*SIZE, 3), counts=Detection.count(split, 2))
    return Detection.make(setting, **kwargs), targets


def say_truth(task, targets, method):
    """Outputs of a network that is sure of all that is true."""
    values = []
    if method == "yolo_v1":
        out = np.zeros((3, 1, 1, 12), np.float32)
        grids, channels = [(2, 3)], [12]
    elif method == "yolo_v2":
        grids, channels = [(2, 3)], [len(task.method.priors) * 7]
    else:
        grids, channels = [(4, 6), (2, 3)], [len(p) * 7 for p in task.method.priors]
    for (rows, columns), count in zip(grids, channels, strict=True):
        out = np.zeros((3, rows, columns, count), np.float32)
        if method != "yolo_v1":
            out.reshape(3, rows, columns, -1, 7)[..., 4] = -20
        values.append(out)
    for i, j in np.argwhere(targets.valid & ~targets.crowd):
        box, label = targets.boxes[i, j], targets.labels[i, j]
        (rows, columns), out = grids[-1], values[-1]
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        row, column = int(y * rows / SIZE[0]), int(x * columns / SIZE[1])
        where = jnp.broadcast_to(jnp.asarray(box), (1, rows, columns, 1, 4))
        if method == "yolo_v1":
            cell = out[i, row, column]
            cell[:4] = encode_cells(where, SIZE)[0, row, column, 0]
            cell[4], cell[10 + label] = 1, 1
            continue
        priors = task.method.priors if method == "yolo_v2" else task.method.priors[-1]
        where = jnp.broadcast_to(where, (1, rows, columns, len(priors), 4))
        numbers = np.array(encode_priors(where, jnp.asarray(priors), SIZE)[0, row, column, 0])
        place = np.clip(numbers[:2], 1e-6, 1 - 1e-6)
        cell = out.reshape(3, rows, columns, -1, 7)[i, row, column, 0]
        cell[:2], cell[2:4] = np.log(place / (1 - place)), numbers[2:]
        cell[4:] = [20, -20, -20]
        cell[5 + label] = 20
    return tuple(values) if method == "yolo_v3" else values[0]


METHODS = {
    "yolo_v1": {},
    "yolo_v2": {"priors": 2},
    "yolo_v3": {"priors": (((9, 9), (16, 24)), ((30, 30), (40, 40), (60, 60)))},
}


@needs_pycocotools
@pytest.mark.parametrize(
    "method",
    [
        pytest.param("yolo_v1", marks=pytest.mark.slow),
        pytest.param("yolo_v2", marks=pytest.mark.slow),
        "yolo_v3",
    ],
)
def test_outputs_that_say_the_truth_have_full_marks(method):
    task, targets = make(method=method, **METHODS[method])
    outputs = say_truth(task, targets, method)
    task.check(jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), outputs))
    losses, found = jax.jit(lambda x: (task.losses(x, targets), task.predict(x)))(outputs)
    assert losses.shape == (3,)
    arrays = jax.tree.map(np.asarray, {**found, **task.expected(targets)})
    assert arrays["boxes"].shape == (3, 100, 4)
    assert (arrays["labels"] >= 0).sum(axis=1).tolist() == [2, 1, 0]
    report = task.report({}, arrays)
    assert report["mean_ap"] == pytest.approx(1) and report["voc12"] == pytest.approx(1)
    assert report["coco"]["ap"] == pytest.approx(1) and report["objects"] == 3
    assert report["coco"]["ap_small"] == -1  # 16x24, of 384 pixels here, is of 1,229 in its file
    assert task.confusion(report, arrays).tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    table = Detection.format(report)
    assert "dog" in table and "1.0000" in table

    answer = {name: np.asarray(arrays[name][0]) for name in ("boxes", "scores", "labels")}
    fitted = task.fit_answer(answer, np.diag([2.0, 2.0, 1.0]), (128, 192))
    told = task.describe(fitted, 5)
    boxes = {entry["class"]: entry["box"] for entry in told}
    np.testing.assert_allclose(boxes["dog"], [100, 40, 180, 120], atol=0.1)
    assert "dog  (100, 40, 180, 120)" in [task.format_entry(e)[9:] for e in told]
    image = np.zeros((128, 192, 1), np.uint8)
    drawn = task.annotate(image, fitted)
    assert drawn.shape == (128, 192, 3) and drawn[40, 140].any() and not drawn[80, 140].any()


@needs_pycocotools
def test_pictures_show_what_was_found_and_missed():
    task, targets = make(method="yolo_v2", priors=2)
    outputs = say_truth(task, targets, "yolo_v2")
    outputs[1].reshape(2, 3, -1, 7)[..., 4] = -20
    found = jax.jit(task.predict)(outputs)
    arrays = jax.tree.map(np.asarray, {**found, **task.expected(targets)})
    images = np.zeros((3, *SIZE, 3), np.uint8)
    examples = Examples(arrays, ["x", "y", "z"], "test", lambda chosen: images[chosen])
    for file in task.pictures:
        figure = task.draw(file, examples)
        titles = [axes.get_title() for axes in figure.axes]
        if file == "detections.png":
            assert titles[1:3] == ["x: 2 right, 0 wrong, 0 missed", "z: 0 right, 0 wrong, 0 missed"]
            assert titles[0].startswith("y: 0 right") and titles[0].endswith("1 missed")
        figure.canvas.draw()


def test_priors_are_fitted_to_the_training_split():
    task, targets = make(method="yolo_v2", priors=3)
    sides = sorted([(16, 24), (40, 40), (30, 30)], key=np.prod)  # no crowds
    np.testing.assert_allclose(task.method.sides, sides, atol=0.01)
    task, _ = make(method="yolo_v3", priors=3)
    assert len(task.method.priors) == 1


def test_finer_maps_of_the_tiny_network():
    task, _ = make(method="yolo_v3", priors=(((9, 9),), ((40, 40), (30, 30))), stride=16)
    network = create_model("yolo_v3_tiny", num_classes=2, strides=(16, 8), features=8)
    images = jax.ShapeDtypeStruct((3, *SIZE, 3), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert [x.shape for x in outputs] == [(3, 8, 12, 21), (3, 4, 6, 21)]
    values = [jnp.zeros((3, 8, 12, 7)), jnp.zeros((3, 4, 6, 14))]
    boxes, _ = task.method.decode(values)  # cells of 8 pixels, with a box at the middle of each
    np.testing.assert_allclose(boxes[0, 13], [7.5, 7.5, 16.5, 16.5])


@pytest.mark.parametrize(
    "kwargs, told",
    [
        ({"method": "yolo"}, "method must be one of yolo_v1, yolo_v2, yolo_v3, ssd, got 'yolo'"),
        ({"method": "yolo_v2", "priors": 9}, "9 priors need as many different boxes"),
        ({"method": "yolo_v3", "priors": 5}, "3 for each map, so not 5"),
        ({"method": "yolo_v3", "priors": ((1, 2, 3),)}, "must be pairs of width and height"),
        ({"method": "yolo_v1", "priors": 5}, "yolo_v1 has none"),
        ({"method": "ssd", "loss": {"object_weight": 2}}, "there is no object_weight; there are"),
        ({"method": "ssd", "default_boxes": {"map": 3}}, "default_boxes: .*'map'"),
        ({"method": "ssd", "stride": 16}, "stride is of yolo_v3, not of ssd"),
        ({"shown_score": 2}, r"shown_score must be in \[0, 1\], got 2"),
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
    ],
)
def test_settings_that_are_wrong(kwargs, told):
    with pytest.raises(UserError, match=told):
        make(**kwargs)


def test_networks_that_do_something_else(monkeypatch):
    task, _ = make(method="yolo_v3", priors=3)
    with pytest.raises(UserError, match=r"needs outputs 1 maps with 21 channels.* \[1, 2\]$"):
        task.check(jax.ShapeDtypeStruct((1, 2), jnp.float32))
    with pytest.raises(UserError, match="multiple of 32 pixels, not 60x96"):
        Detection.make(Setting(NAMES, (60, 96, 3)), method="yolo_v2", priors=((1, 1),))
    monkeypatch.setattr(measures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pycocotools.*pip install 'flaxcnn\[detection\]'"):
        task.check((jax.ShapeDtypeStruct((1, 2, 3, 21), jnp.float32),))
    with pytest.raises(UserError, match="detection needs data with boxes"):
        Detection.count(ArraySplit(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)), 2)
