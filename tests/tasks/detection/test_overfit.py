"""Each detector finds all objects of four images that it has been trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.data.splits import ArraySplit
from flaxcnn.data.targets import Boxes
from flaxcnn.models import create_model
from flaxcnn.tasks.detection.detection import Detection
from flaxcnn.tasks.task import Setting

SIZE = 96, 96
BACKBONE = {"backbone": "mobilenet_v1_0.25_128", "num_classes": 2}
SSD_BOXES = {"maps": ((6, 6), (3, 3)), "scales": (0.2, 0.4, 0.7), "ratios": ((2,), (2,))}
CASES = {
    "yolo_v1": (
        "yolo_v1",
        {"features": (64, 64), "downsample": False, "hidden": None, "batch_norm": True},
        {},
    ),
    "yolo_v2": ("yolo_v2", {"features": (64, 64), "num_anchors": 3}, {"priors": 3}),
    "yolo_v3": ("yolo_v3_tiny", {"features": 64}, {"priors": 6}),
    "ssd": (
        "ssd300",
        {
            **{"strides": (16, 32), "reduced": 0, "normalize": False},
            **{"extras": (), "extra_strides": (), "num_anchors": (4, 4)},
        },
        {"default_boxes": SSD_BOXES | {"strides": None}},
    ),
}


def make_scenes():
    """Red and blue rectangles on grey noise; two or three in each image."""
    rng = np.random.default_rng(0)
    images = rng.integers(100, 150, (4, *SIZE, 3)).astype(np.float32) / 255
    boxes = np.zeros((4, 3, 4), np.float32)
    boxes[:, 0] = [[6, 8, 34, 40], [50, 50, 90, 86], [10, 52, 40, 90], [60, 6, 90, 30]]
    boxes[:, 1] = [[52, 40, 88, 90], [8, 10, 40, 30], [56, 8, 86, 48], [8, 50, 30, 84]]
    boxes[:2, 2] = [[54, 6, 84, 26], [10, 60, 30, 90]]
    labels = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]], np.int32)
    valid = (boxes > 0).any(-1)
    for i, j in np.argwhere(valid):
        left, top, right, bottom = boxes[i, j].astype(int)
        color = [0.1, 0.1, 0.9] if labels[i, j] else [0.9, 0.1, 0.1]
        images[i, top:bottom, left:right] = color
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    placed = np.tile(np.array([1, 1, 0, 0, *SIZE], np.float32), (4, 1))
    return images, Boxes(boxes, valid, labels, np.zeros((4, 3), bool), area, placed=placed)


@pytest.mark.zoo
@pytest.mark.parametrize("method", CASES)
def test_all_objects_of_four_images_are_found(method):
    pytest.importorskip("pycocotools", reason="needs the extra detection")
    images, targets = make_scenes()
    name, kwargs, settings = CASES[method]
    split = ArraySplit(np.zeros((4, *SIZE, 3), np.uint8), targets)
    setting = Setting(("red", "blue"), (*SIZE, 3), counts=Detection.count(split, 2))
    task = Detection.make(setting, method=method, **settings)
    network = create_model(name, **BACKBONE | kwargs)
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, train=False))(images)
    optimizer = optax.adam(2e-3)

    def loss(params, batch_stats):
        outputs, updated = network.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return task.losses(outputs, targets).mean(), updated.get("batch_stats", {})

    def step(carry, _):
        params, batch_stats, state = carry
        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_stats)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), batch_stats, state), value

    @jax.jit
    def train(params, batch_stats):
        first = params, batch_stats, optimizer.init(params)
        (params, batch_stats, _), losses = jax.lax.scan(step, first, length=200)
        # As in training: the averages of so few steps are not those of BatchNorm yet.
        outputs, _ = network.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return task.predict(outputs), losses

    found, losses = train(variables["params"], variables.get("batch_stats", {}))
    arrays = jax.tree.map(np.asarray, {**found, **task.expected(targets)})
    report = task.report({}, arrays)
    assert losses[-1] < 0.2 * losses[0] and jnp.isfinite(losses).all()
    assert report["mean_ap"] > 0.99, report
