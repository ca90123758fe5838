"""Networks for a class per pixel: sizes from the papers, places, bilinear upsampling."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count_multiply_adds, count_values

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, list_models, variant
from flaxcnn.models._dense import Upsample

NETWORKS = [name for name in list_models() if variant(name).task == "segmentation"]
# Long et al.'s files, torchvision's weights (without the auxiliary head), and what everybody counts
# for Ronneberger et al.'s U-Net.
PARAMETERS = {
    "fcn32s_vgg16": 134_346_581,
    "fcn16s_vgg16": 134_357_354,
    "fcn8s_vgg16": 134_362_751,
    "fcn8s_atonce_vgg16": 134_362_751,
    "fcn_resnet50": 32_957_013,
    "fcn_resnet101": 51_949_141,
    "unet": 31_030_658,
}


DEEP = ("fcn16s", "fcn16s_vgg16", "fcn8s_atonce_vgg16", "fcn_resnet101", "unet_bn")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.zoo] * (n in DEEP)) for n in NETWORKS]
)
def test_size(name):
    v, model = variant(name), create_model(name)
    images = jax.ShapeDtypeStruct((1, *v.input_shape), jnp.float32)
    initialize = functools.partial(model.init_with_output, train=False)
    logits, variables = jax.eval_shape(initialize, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images)
    assert count_values(variables["params"]) == v.params == PARAMETERS.get(name, v.params)
    assert count_values(variables.get("batch_stats", {})) == v.statistics
    assert count_multiply_adds(jaxpr.jaxpr) == v.macs
    classes = v.kwargs["num_classes"]
    assert (logits.shape, logits.dtype) == ((1, *v.input_shape[:2], classes), jnp.float32)


def test_reference_table(shared):
    with open(shared / "reference" / "zoo.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for name in ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "fcn8s_atonce_vgg16"):
        v = variant(name)
        assert (v.params, v.macs) == (int(rows[name]["params_trainable"]), int(rows[name]["macs"]))


@pytest.mark.parametrize("size", [(75, 51)])
@pytest.mark.parametrize("name", ["fcn8s", "fcn16s_vgg16", "unet"])
def test_every_pixel_of_any_size_gets_logits(name, size):
    model = create_model(name, num_classes=3)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    out, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert out.shape == (2, *size, 3)


@pytest.mark.parametrize(("factor", "learned"), [(2, True), (8, False)])
def test_upsampling_is_bilinear(factor, learned):
    """As OpenCV's where nothing beyond the border is seen."""
    import cv2

    x = np.random.default_rng(0).normal(size=(1, 6, 5, 2)).astype(np.float32)
    module = Upsample(factor, learned)
    out, variables = module.init_with_output(jax.random.key(0), x)
    assert bool(jax.tree.leaves(variables)) is learned
    half = factor // 2
    inner = np.asarray(out)[0, half:-half, half:-half]
    expected = cv2.resize(x[0], (5 * factor, 6 * factor), interpolation=cv2.INTER_LINEAR)
    assert inner.shape == expected.shape
    np.testing.assert_allclose(
        inner[factor:-factor, factor:-factor], expected[factor:-factor, factor:-factor], atol=1e-5
    )


@pytest.mark.parametrize("kept", [16, 8])
def test_a_place_is_scored_where_it_is(kept):
    """FCN's crops: what changes one place of the image changes a skip's scores around it.

    (The coarsest score sees 404 pixels, more than the image has.)
    """
    model = create_model("fcn8s_vgg16", num_classes=1, features=(4,) * 5, hidden=4)
    images = jax.ShapeDtypeStruct((1, 96, 160, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), shapes)
    for stride in {32, 16, 8} - {kept}:
        score = variables["params"][f"score{stride}"]
        variables["params"][f"score{stride}"] = jax.tree.map(jnp.zeros_like, score)
    image = np.zeros((1, 96, 160, 3), np.float32)
    image[:, 40:48, 120:128] = 1
    apply = functools.partial(model.apply, train=False)
    change = np.abs(apply(variables, image) - apply(variables, 0 * image))[0, ..., 0]
    change *= change > change.max() / 2
    for place, at in zip((44, 124), np.indices(change.shape), strict=True):
        assert abs((at * change).sum() / change.sum() - place) < kept / 2


def test_mistakes_are_named():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for name, kwargs, message in (
        ("fcn8s", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("fcn8s", {"stride": 3}, "stride is 3: mobilenet_v2 has maps of stride 2, 4, 8, 16, 32"),
        ("fcn8s", {"backbone": "vgg16", "output_stride": 8}, "no argument 'output_stride'"),
    ):
        make = functools.partial(create_model, name, **kwargs)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(
                lambda x, make=make: make().init(jax.random.key(0), x, train=False), images
            )
