"""Detectors say what torchvision's say with its weights (tests/reference/make_detectors.py)."""

import functools

import jax
import numpy as np
import pytest
from detectors import CLASSES, EVERY, GOLDEN, OURS, draw_image, draw_tensor

from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, list_sources

NAMES = ("ssd300_vgg16", "mask_rcnn_resnet50_fpn")


def list_tensors(name):
    """The names and shapes of torchvision's tensors, as our name map has them."""
    sources = list_sources(name, create_model(name, num_classes=CLASSES), "torchvision")
    return {n: shape for source in sources.values() for n, shape in source.their_shapes.items()}


def read_golden(name):
    with np.load(GOLDEN / f"{name}.torchvision.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    "name", ["ssd300_vgg16", pytest.param("mask_rcnn_resnet50_fpn", marks=pytest.mark.slow)]
)
def test_names_and_shapes(name):
    tensors = [f"{n} {shape}" for n, shape in list_tensors(name).items()]
    assert sorted(tensors) == read_golden(name)["tensors"].tolist()


@pytest.mark.zoo
def test_faster_rcnn_has_the_same_names_but_for_the_masks():
    masked = list_tensors("mask_rcnn_resnet50_fpn")
    plain = {n: shape for n, shape in masked.items() if ".mask_" not in n}
    assert list_tensors("faster_rcnn_resnet50_fpn") == plain


def run(name, **kwargs):
    tensors = {n: draw_tensor(n, shape) for n, shape in list_tensors(name).items()}
    variables = convert(name, tensors, "torchvision", num_classes=CLASSES)
    model = create_model(name, num_classes=CLASSES, **kwargs)
    return jax.jit(functools.partial(model.apply, train=False))(variables, draw_image(name))


def compare(ours, expected, tolerance=1e-4):
    assert ours.shape == expected.shape and np.ptp(expected) > 1e-3
    assert np.abs(np.asarray(ours) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.zoo
def test_ssd_before_suppression():
    golden = read_golden("ssd300_vgg16")
    offsets, logits = run("ssd300_vgg16")
    every = EVERY["ssd300_vgg16"]
    compare(offsets[:, ::every], golden["offsets"])
    compare(logits[:, ::every], golden["logits"])


@pytest.mark.zoo
def test_mask_rcnn_stage_by_stage():
    """Of which the first two stages are Faster R-CNN's."""
    name = "mask_rcnn_resnet50_fpn"
    golden, outputs = read_golden(name), run(name, **OURS)
    every = EVERY[name]
    for field in ("objectness", "anchor_offsets", "anchors"):
        compare(getattr(outputs, field)[0, ::every], golden[field])
    assert outputs.valid.all() and outputs.matched is None
    for field in ("proposals", "logits", "box_offsets"):
        compare(getattr(outputs, field)[0], golden[field])
    found = outputs.detections
    assert found.valid.all()
    compare(found.boxes[0], golden["boxes"])
    compare(found.scores[0], golden["scores"])
    np.testing.assert_array_equal(1 + found.labels[0], golden["labels"])
    compare(outputs.masks[0], golden["masks"])


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_a_head_for_other_classes_is_new(name):
    """Of each anchor and each box there are scores for every class: their number is found."""
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in list_tensors(name).items()}
    with pytest.warns(UserWarning, match=f"are for {CLASSES} classes, and num_classes is 4"):
        variables = convert(name, tensors, "torchvision", num_classes=4)
    head = "classes1" if name == "ssd300_vgg16" else "classifier"
    assert np.abs(variables["params"][head]["kernel"]).max() > 0
    kept = "fc6" if name == "ssd300_vgg16" else "fc1"
    assert not variables["params"][kept]["kernel"].any()
