"""Two stages: what is sampled in training, gradients without a scatter, FPN, RPN, frozen norms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from jax import export

from flaxcnn.errors import UserError
from flaxcnn.layers import FrozenBatchNorm
from flaxcnn.models import FPN, RPNHead, create_model, init, variant
from flaxcnn.models._dense import upsample_nearest

SMALL = {
    "num_classes": 2,
    "backbone": "cifar_resnet20",
    "strides": (2, 4),
    "anchor_sizes": (8, 16, 32),
    "fpn_features": 8,
    "hidden": (16,),
    "before_nms": (50, 30),
    "num_proposals": (20, 12),
    "num_samples": 16,
    "max_detections": 5,
}
BOXES = np.array(
    [[[2, 2, 14, 20], [10, 8, 30, 30], [0, 0, 0, 0]], [[5, 5, 25, 12], [1, 1, 9, 9], [3, 3, 9, 9]]],
    np.float32,
)
VALID = np.array([[True, True, False], [True, False, False]])
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@functools.cache
def make_small():
    model = create_model("mask_rcnn_resnet50_fpn", mask_features=(8, 8), **SMALL)
    return model, init(model, jax.random.key(0), (32, 32, 3))


def train(params, key):
    model, variables = make_small()
    return model.apply(
        {**variables, "params": params},
        IMAGES,
        BOXES,
        VALID,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )


def overlap(a, b):
    """Intersection over union of corners [4], in NumPy."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    areas = (np.prod(x[2:] - x[:2]) for x in (a, b))
    return sides.prod() / (sum(areas) - sides.prod())


@pytest.mark.slow
def test_training_samples_proposals_and_true_boxes():
    _, variables = make_small()
    run = jax.jit(train)
    outputs, updates = run(variables["params"], jax.random.key(1))
    assert jax.tree.map(lambda x: x.shape, tuple(outputs)) == (
        *((2, 1008), (2, 1008, 4), (2, 1008, 4), (2, 16, 4), (2, 16), (2, 16)),
        *((2, 16, 3), (2, 16, 3, 4), (2, 4, 28, 28, 3), None),
    )
    for boxes, valid, proposals, counts, matched in zip(
        BOXES, VALID, outputs.proposals, outputs.valid, outputs.matched, strict=True
    ):
        positive = np.asarray(matched >= 0)
        assert 1 <= positive.sum() <= 4 and not positive[4:].any()  # a quarter, and first
        for proposal, which, used in zip(proposals, matched, counts, strict=True):
            overlaps = [overlap(np.asarray(proposal), box) for box in boxes[valid]]
            if which >= 0:
                assert used and np.argmax(overlaps) == which and max(overlaps) >= 0.5
            elif used:
                assert max(overlaps) < 0.5
    # Frozen statistics stay; the same key draws the same, another one others.
    assert jax.tree.all(
        jax.tree.map(np.array_equal, updates["batch_stats"], variables["batch_stats"])
    )
    again, _ = run(variables["params"], jax.random.key(1))
    other, _ = run(variables["params"], jax.random.key(2))
    np.testing.assert_array_equal(again.proposals, outputs.proposals)
    assert not np.array_equal(other.proposals, outputs.proposals)


@pytest.mark.slow
def test_detections_are_of_fixed_number():
    model, variables = make_small()
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, IMAGES)
    found = outputs.detections
    assert outputs.matched is None and outputs.masks.shape == (2, 5, 28, 28)
    assert found.boxes.shape == (2, 5, 4) and found.valid.any()
    assert (np.diff(found.scores) <= 0).all() and (found.labels < 2).all()
    assert (found.boxes >= 0).all() and (found.boxes <= 32).all()


@pytest.mark.slow
def test_a_step_s_gradient_scatters_nothing():
    """`--xla_gpu_deterministic_ops` refuses scatters; the text is what XLA gets for a GPU."""

    def loss(params, key):
        outputs, _ = train(params, key)
        kinds = (outputs.objectness, outputs.anchor_offsets, outputs.logits, outputs.box_offsets)
        return sum((x**2).mean() for x in (*kinds, outputs.masks))

    params = make_small()[1]["params"]
    step = export.export(jax.jit(jax.grad(loss)), platforms=["cuda"])
    text = step(params, jax.random.key(0)).mlir_module()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.scatter" not in text and "select_and_scatter" not in text


def trace(model, side=64):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_mistakes_are_named():
    model = create_model("mask_rcnn_resnet50_fpn", **SMALL)
    variables = trace(model, 32)
    with pytest.raises(UserError, match="MaskRCNN needs the true boxes to be trained"):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, IMAGES)
    with pytest.raises(UserError, match="FasterRCNN: 5 maps need as many anchor_sizes, got 1"):
        trace(create_model("faster_rcnn_resnet50_fpn", anchor_sizes=(8,), backbone="resnet18"))


def test_pyramid_and_proposals_stand_on_any_backbone():
    backbone = create_model("squeezenet1_1", features_only=True, out_indices=(1, 2))

    class Detector(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            maps = FPN(16, "none")(backbone.clone(parent=self)(images, train=train))
            return maps, RPNHead(2)(maps)

    images = jax.ShapeDtypeStruct((1, 67, 50, 3), jnp.float32)
    (maps, (scores, offsets)), _ = jax.eval_shape(
        lambda x: Detector().init_with_output(jax.random.key(0), x, train=False), images
    )
    assert [x.shape[3] for x in maps] == [16, 16]
    for x, score, offset in zip(maps, scores, offsets, strict=True):
        assert score.shape == (1, x.shape[1] * x.shape[2] * 2)
        assert offset.shape == (*score.shape, 4)


def test_nearest_upsampling_is_pytorch_s():
    """`F.interpolate(mode="nearest")` of even and odd sides: place i comes from floor(i h / H)."""
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
    for height, width in ((10, 8), (9, 7)):
        y = upsample_nearest(jnp.asarray(x), jnp.zeros((1, height, width, 1)))
        rows, columns = np.arange(height) * 5 // height, np.arange(width) * 4 // width
        np.testing.assert_array_equal(y, x[:, rows][:, :, columns])


def test_two_scores_are_one_logit():
    """Background and object by softmax, all backgrounds first as in the authors' code."""
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 4)).astype(np.float32)
    head = RPNHead(3, softmax=True)
    (logits, _), variables = head.init_with_output(jax.random.key(0), [x])
    conv, score = (variables["params"][name] for name in ("conv", "scores"))
    hidden = layers.relu(layers.conv2d(x, conv["kernel"], conv["bias"], padding=1))
    scores = layers.conv2d(hidden, score["kernel"], score["bias"])
    pairs = np.exp(scores).reshape(1, 6, 2, 3)
    expected = pairs[:, :, 1] / pairs.sum(2)
    np.testing.assert_allclose(jax.nn.sigmoid(logits[0]).reshape(1, 6, 3), expected, atol=1e-6)


def test_frozen_norm_is_batch_norm_by_running_averages():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    kept = {n: rng.uniform(0.5, 2, 5).astype(np.float32) for n in ("mean", "var", "scale", "bias")}
    ours = FrozenBatchNorm().apply({"batch_stats": kept}, x)
    np.testing.assert_allclose(ours, layers.batch_norm(x, **kept, epsilon=1e-5), atol=1e-5)


@pytest.mark.zoo
def test_a_classifier_s_weights_are_adopted():
    """Scale and bias of a frozen norm are no parameters; VGG-16's dense layers are the head's."""
    for name, backbone in (
        ("faster_rcnn_resnet50_fpn", "resnet18"),
        ("faster_rcnn_vgg16", "vgg16"),
    ):
        model = create_model(name, **({"backbone": backbone}))
        theirs = trace(create_model(backbone), variant(backbone).input_shape[0])
        adopted, ours = model.adopt(theirs), trace(model, 128)
        flat = jax.tree.leaves_with_path(ours)
        shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
        taken = {
            jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(adopted)
            if "['backbone']['classifier']" not in jax.tree_util.keystr(path)
        }
        assert taken.items() <= shapes.items()
        assert {n for n in shapes if "['backbone']" in n} <= taken.keys()
        assert ("['params']['fc1']['kernel']" in taken) is (backbone == "vgg16")
