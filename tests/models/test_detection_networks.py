"""Detectors: sizes from the authors' files, outputs, and forward passes in NumPy."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_darknet
import pytest
from counting import count_multiply_adds, count_values
from draw import draw_images, draw_weight

from flaxcnn.analysis import receptive_fields
from flaxcnn.errors import UserError
from flaxcnn.models import TwoStageOutputs, create_model, list_models, variant
from flaxcnn.models.yolo_v2 import reorg, stack
from flaxcnn.weights import convert, export, read_tensors
from flaxcnn.weights.formats import darknet

# Of each network the row of the reference table, and the shapes of its outputs.
NETWORKS = {
    "yolo_v1": ("yolov1", [(7, 7, 30)]),
    "yolo_v2": ("yolov2_coco", [(13, 13, 425)]),
    "yolo_v2_voc": ("yolov2_voc", [(13, 13, 125)]),
    "yolo_v2_tiny": ("yolov2_tiny_coco", [(13, 13, 425)]),
    "yolo_v2_tiny_voc": ("yolov2_tiny_voc", [(13, 13, 125)]),
    "yolo_v3": ("yolov3", [(52, 52, 255), (26, 26, 255), (13, 13, 255)]),
    "yolo_v3_voc": ("yolov3_voc", [(52, 52, 75), (26, 26, 75), (13, 13, 75)]),
    "yolo_v3_spp": ("yolov3_spp", [(76, 76, 255), (38, 38, 255), (19, 19, 255)]),
    "yolo_v3_tiny": ("yolov3_tiny", [(26, 26, 255), (13, 13, 255)]),
    "ssd300": ("ssd300_vgg16_voc", [(8732, 4), (8732, 21)]),
    "ssd300_coco": ("ssd300_vgg16_coco", [(8732, 4), (8732, 81)]),
    "ssd300_vgg16": ("ssd300_vgg16_tv", [(8732, 4), (8732, 91)]),
    "faster_rcnn_vgg16": ("faster_rcnn_vgg16_voc", [(300, 21), (300, 21, 4)]),
    "faster_rcnn_vgg16_coco": ("faster_rcnn_vgg16_coco", [(300, 81), (300, 81, 4)]),
    "faster_rcnn_resnet50_fpn": ("faster_rcnn_resnet50_fpn", [(1000, 91), (1000, 91, 4)]),
    "mask_rcnn_resnet50_fpn": (
        "mask_rcnn_resnet50_fpn",
        [(1000, 91), (1000, 91, 4), (100, 28, 28)],
    ),
}
PYRAMID = (200, 100, 50, 25)  # sides of the maps that boxes are seen on, 256 channels each


def count_alignment(boxes, side):
    """Multiply-adds of RoIAlign by products of matrices, 64 boxes at once: not the papers'."""
    boxes = -(-boxes // 64) * 64
    return sum(256 * boxes * side * s * (s + side) for s in PYRAMID)


# What is multiplied besides convolutions and dense layers; of masks the choice of a class.
BESIDES = {
    "faster_rcnn_resnet50_fpn": count_alignment(1000, 7),
    "mask_rcnn_resnet50_fpn": count_alignment(1000, 7)
    + count_alignment(100, 14)
    + 100 * 28 * 28 * 91,
}


def trace(model, shape):
    """Shapes of the outputs and the variables, and the jaxpr."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    initialize = functools.partial(model.init_with_output, train=False)
    jaxpr, (outputs, variables) = jax.make_jaxpr(initialize, return_shape=True)(
        jax.random.key(0), images
    )
    if isinstance(outputs, TwoStageOutputs):
        outputs = (outputs.logits, outputs.box_offsets, outputs.masks)
    return jax.tree.leaves(outputs), variables, jaxpr


def test_every_detector_is_compared():
    assert set(NETWORKS) == {n for n in list_models() if variant(n).task == "detection"}


# Tracing takes the time, and the others have the same parts.
FIRST = ("yolo_v1", "yolo_v2", "yolo_v3_tiny", "ssd300")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.zoo] * (n not in FIRST)) for n in NETWORKS]
)
def test_size(name, shared):
    with open(shared / "reference" / "zoo.csv") as file:
        row = {row["name"]: row for row in csv.DictReader(file)}[NETWORKS[name][0]]
    v = variant(name)
    outputs, variables, jaxpr = trace(create_model(name), v.input_shape)
    assert count_values(variables["params"]) == v.params == int(row["params_trainable"])
    statistics = count_values(variables.get("batch_stats", {}))
    assert statistics == v.statistics == int(row["params_non_trainable"])
    assert v.macs == int(row["macs"])
    assert count_multiply_adds(jaxpr.jaxpr) == v.macs + BESIDES.get(name, 0)
    assert row["input"] == "x".join(map(str, v.input_shape))
    assert [x.shape[1:] for x in outputs] == NETWORKS[name][1]
    assert {x.dtype for x in outputs} == {jnp.dtype("float32")}


def test_outputs_of_any_number_of_classes():
    """310 of each of YOLOv1's cells and 915 of each of YOLOv3's, for 300 classes."""
    for name, size, count in (
        ("yolo_v1", 64, 310),
        ("yolo_v2", 32, 5 * 305),
        ("yolo_v3_tiny", 32, 915),
    ):
        (first, *_), _, _ = trace(create_model(name, num_classes=300), (size, size, 3))
        assert first.shape[-1] == count


SMALL = {
    "yolo_v1": {"features": (64,), "downsample": False, "hidden": None, "batch_norm": True},
    "yolo_v2": {"features": (64, 64), "passthrough": "stack"},
    "yolo_v3": {"features": 32},
    "yolo_v3_tiny": {"features": 32},
    "ssd300": {
        "strides": (16, 32),
        "reduced": 0,
        "normalize": False,
        "extras": (64, 64),
        "extra_strides": (2, 2),
        "num_anchors": (6, 6, 6, 4),
    },
}
SHAPES = {
    "yolo_v1": [(4, 3, 13)],
    "yolo_v2": [(4, 3, 40)],
    "yolo_v3": [(16, 12, 24), (8, 6, 24), (4, 3, 24)],
    "yolo_v3_tiny": [(8, 6, 24), (4, 3, 24)],
    "ssd300": [(6 * 48 + 6 * 12 + 6 * 4 + 4, n) for n in (4, 4)],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.zoo] * (n in ("yolo_v1", "yolo_v3"))) for n in SMALL],
)
def test_heads_on_another_backbone(name):
    model = create_model(name, num_classes=3, backbone="mobilenet_v2", **SMALL[name])
    outputs, variables, _ = trace(model, (128, 96, 3))
    assert [x.shape[1:] for x in outputs] == SHAPES[name]
    assert "stage7_block1" in variables["params"]["backbone"]
    adopted = model.adopt({"params": {"a": 1}, "batch_stats": {"b": 2}})
    assert adopted == {"params": {"backbone": {"a": 1}}, "batch_stats": {"backbone": {"b": 2}}}


def test_mistakes_are_named():
    for name, size, kwargs, message in (
        ("yolo_v2", 48, {}, "passthrough needs sides of 32 times n, got 48x48"),
        ("yolo_v3", 64, {"backbone": "cifar_resnet20"}, "YOLOv3 needs maps of stride 32: cifar_re"),
        ("ssd300", 64, {}, "images of 64x64 are too small for 4 extras"),
        ("ssd300", 64, {"num_anchors": (4,)}, "need 6 num_anchors, got 1"),
        ("ssd300", 64, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            trace(create_model(name, **kwargs), (size, size, 3))


# The authors' files from top to bottom, in the words of numpy_darknet.py.
TINY = "16@3 p2/2 32@3 p2/2 64@3 p2/2 128@3 p2/2 256@3 p2/2 512@3 p2/1 1024@3"
DARKNET19 = (
    "32@3 p2/2 64@3 p2/2 128@3 64@1 128@3 p2/2 256@3 128@1 256@3 p2/2 512@3 256@1 512@3 256@1 512@3"
    " p2/2 1024@3 512@1 1024@3 512@1 1024@3"
)
DARKNET53 = "32@3 " + " ".join(
    f"{2 * c}@3/2 " + f"{c}@1 {2 * c}@3 add-3 " * n
    for c, n in ((32, 1), (64, 2), (128, 8), (256, 8), (512, 4))
)


def scale(c, outputs, spp=""):
    return f"{c}@1 {2 * c}@3 {c}@1 {spp} {2 * c}@3 {c}@1 {2 * c}@3 out{outputs}"


SPP = "p5/1 route-2 p9/1 route-4 p13/1 route-1,-3,-5,-6 512@1"
CFGS = {
    "yolo_v2": [DARKNET19, "1024@3 1024@3 route-9 64@1 reorg route-1,-4 1024@3 out425"],
    "yolo_v2_tiny": [TINY, "512@3 out425"],
    "yolo_v3": [
        *(DARKNET53, scale(512, 255), "route-4 256@1 up route-1,61"),
        *(scale(256, 255), "route-4 128@1 up route-1,36", scale(128, 255)),
    ],
    "yolo_v3_spp": [
        *(DARKNET53, scale(512, 255, SPP), "route-4 256@1 up route-1,61"),
        *(scale(256, 255), "route-4 128@1 up route-1,36", scale(128, 255)),
    ],
    "yolo_v3_tiny": [TINY, "256@1 512@3 out255 route-4 128@1 up route-1,8 256@3 out255"],
}
BIG = ("yolo_v2", "yolo_v2_tiny", "yolo_v3", "yolo_v3_spp")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.zoo if n in BIG else pytest.mark.slow) for n in CFGS],
)
def test_a_network_with_darknet_s_weights_is_darknet_s(name, tmp_path):
    """Weights are written, read back equal, and compute what the .cfg does in NumPy."""
    cfg = numpy_darknet.write_cfg(*CFGS[name])
    shapes = darknet.list_tensors(darknet.parse_cfg(cfg))
    kinds = {"scales": "gamma", "rolling_variance": ".var"}
    tensors = {}
    for tensor, shape in shapes.items():
        number, leaf = tensor.split(".")
        drawn_as = f"{number}.{kinds.get(leaf, leaf)}"
        tensors[tensor] = draw_weight(drawn_as, shape, int(np.prod(shape[1:])), gain=1.0)
    (tmp_path / "a.cfg").write_text(cfg)
    darknet.write(tmp_path / "a.weights", cfg, tensors, seen=7)
    read = read_tensors(tmp_path / "a.weights")
    assert list(read) == list(tensors)
    for tensor in tensors:
        np.testing.assert_array_equal(read[tensor], tensors[tensor])
    variables = convert(name, read, "darknet")
    back = export(name, variables, "darknet")
    assert all(np.array_equal(back[n], tensors[n]) for n in tensors)
    images = draw_images(1, 64, 96, 3)
    model = create_model(name)
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = numpy_darknet.forward(cfg, tensors, images)[::-1]
    for ours, theirs in zip(jax.tree.leaves(outputs), expected, strict=True):
        assert np.ptp(theirs) > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_reorg_is_darknet_s_and_stack_keeps_places():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
    expected = numpy_darknet.reorg(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(reorg(jnp.asarray(x)), expected)
    y = np.asarray(stack(jnp.asarray(x)))
    for i, j, k, m in np.ndindex(3, 2, 2, 2):
        place = slice(8 * (2 * k + m), 8 * (2 * k + m) + 8)
        np.testing.assert_array_equal(y[:, i, j, place], x[:, 2 * i + k, 2 * j + m])


SSD_FIELDS = {1: 452, 2: 516, 3: 644, 4: 772}


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("yolo_v2", {"output": 566}),
        ("yolo_v3", {"scale32_output": 917}),
        ("yolo_v3_tiny", {"scale32_output": 318}),
        # Of the maps that boxes are on.
        ("ssd300", {"fc7": 420, **{f"extra{i}_conv2": n for i, n in SSD_FIELDS.items()}}),
    ],
)
def test_receptive_field(name, fields):
    """Those of the reference table, where nothing is upsampled."""
    found = receptive_fields(create_model(name), variant(name).input_shape)
    assert {layer: found[layer].size[0] for layer in fields} == fields
