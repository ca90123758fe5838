"""GoogLeNet in the paper's form against NumPy, by the names of Caffe's bvlc_googlenet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, relative_error
from flax import linen as nn
from flax import traverse_util
from numpy_layers import (
    avg_pool,
    conv2d,
    dense,
    flatten,
    global_avg_pool,
    local_response_norm,
    max_pool,
    relu,
)

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv
from flaxcnn.models import create_model
from flaxcnn.models._network import Outputs
from flaxcnn.weights.convert import convert, export

NO_DROPOUT = {"dropout": 0.0, "auxiliary_dropout": 0.0}


def forward(tensors, x):
    """The logits, and those of the auxiliary classifiers if there are weights for them."""

    def conv(x, name, stride=1, padding=0):
        kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
        return relu(conv2d(x, kernel, tensors[f"{name}.bias"], stride, padding))

    def fully_connected(x, name):
        return dense(x, tensors[f"{name}.weight"].T, tensors[f"{name}.bias"])

    def respond(x):
        return local_response_norm(x, 5, 1.0, 1e-4 / 5, 0.75)

    def inception(x, name):
        branches = [
            conv(x, f"{name}/1x1"),
            conv(conv(x, f"{name}/3x3_reduce"), f"{name}/3x3", padding=1),
            conv(conv(x, f"{name}/5x5_reduce"), f"{name}/5x5", padding=2),
            conv(max_pool(x, 3, 1, 1), f"{name}/pool_proj"),
        ]
        return np.concatenate(branches, axis=-1)

    def head(x, name):
        x = conv(avg_pool(x, 5, 3, ceil_mode=True), f"{name}/conv")
        x = relu(fully_connected(flatten(x.transpose(0, 3, 1, 2)), f"{name}/fc"))
        return fully_connected(x, f"{name}/classifier")

    x = max_pool(conv(x, "conv1/7x7_s2", 2, 3), 3, 2, ceil_mode=True)
    x = conv(conv(respond(x), "conv2/3x3_reduce"), "conv2/3x3", padding=1)
    x = max_pool(respond(x), 3, 2, ceil_mode=True)
    outputs = []
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            x = max_pool(x, 3, 2, ceil_mode=True)
        x = inception(x, f"inception_{name}")
        loss = {"4a": "loss1", "4d": "loss2"}.get(name)
        if loss and f"{loss}/fc.weight" in tensors:
            outputs.append(head(x, loss))
    return [fully_connected(global_avg_pool(x), "loss3/classifier"), *outputs]


@pytest.mark.parametrize("side", [64, 75])
def test_logits_are_those_of_numpy(side):
    images = draw_images(2, side, side, 3)
    model, variables = draw_network("googlenet_lrn", images, num_classes=10)
    tensors = export("googlenet_lrn", variables, "caffe", num_classes=10)
    expected = forward(tensors, images)[0]
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_auxiliary_logits_are_those_of_numpy():
    images = draw_images(1, 224, 224, 3)
    model, variables = draw_network("googlenet_aux", images, num_classes=10, **NO_DROPOUT)
    tensors = export("googlenet_aux", variables, "caffe", num_classes=10)
    outputs = jax.jit(functools.partial(model.apply, train=True))(variables, images)
    assert isinstance(outputs, Outputs)
    expected = forward(tensors, images)
    for ours, theirs in zip((outputs.logits, *outputs.auxiliary), expected, strict=True):
        assert relative_error(np.asarray(ours), theirs) < 1e-4


@pytest.mark.parametrize("name", ["googlenet_aux", "googlenet_bn_tv_aux"])
def test_auxiliary_classifiers_have_parameters_and_run_in_training_only(name):
    model = create_model(name, num_classes=7)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), images)
    assert {"auxiliary1", "auxiliary2"} < set(shapes["params"])
    apply = functools.partial(model.apply, rngs={"dropout": key}, mutable=["batch_stats"])
    outputs = jax.eval_shape(functools.partial(apply, train=True), shapes, images)[0]
    assert [x.shape for x in (outputs.logits, *outputs.auxiliary)] == [(2, 7)] * 3
    logits = jax.eval_shape(functools.partial(apply, train=False), shapes, images)[0]
    assert logits.shape == (2, 7)
    headless = create_model(name, num_classes=0)
    features = jax.eval_shape(
        lambda x: headless.init_with_output(key, x, train=True)[0],
        images,
    )
    assert features.shape == (2, 1024)


@pytest.mark.parametrize(
    ("name", "side"), [("googlenet", 15), ("googlenet_lrn", 31), ("googlenet_aux", 47)]
)
def test_smallest_images(name, side):
    model = create_model(name)
    images = jnp.zeros((1, side, side + 2, 3))
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    with pytest.raises(UserError, match=f"GoogLeNet needs images of at least {side}x{side}"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images[:, 1:])


def test_weights_of_auxiliary_classifiers_that_are_not_there_are_named():
    images = np.zeros((1, 64, 64, 3))
    variables = draw_network("googlenet_bn_tv_aux", images, num_classes=10)[1]
    tensors = export("googlenet_bn_tv_aux", variables, "torchvision", num_classes=10)
    with pytest.warns(UserWarning, match=r"googlenet: weights not used: aux1\.conv\.bn"):
        variables = convert("googlenet", tensors, "torchvision", num_classes=10)
    assert not any("auxiliary" in name for name in variables["params"])
    back = export("googlenet", variables, "torchvision", num_classes=10)
    assert set(back) == {name for name in tensors if not name.startswith("aux")}
    assert all((back[name] == tensors[name]).all() for name in back)


@pytest.mark.parametrize(
    ("name", "layout"), [("googlenet", "caffe"), ("googlenet_lrn", "torchvision")]
)
def test_the_other_forms_layout_is_refused(name, layout):
    with pytest.raises(UserError, match="GoogLeNet with"):
        convert(name, {}, layout)


def test_width_is_a_factor_of_features():
    model = create_model("googlenet", width=0.5, num_classes=10)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 64, 64, 3))
    )
    flat = traverse_util.flatten_dict(shapes["params"], sep="/")
    assert flat["inception_3a/reduce5x5/conv/kernel"].shape == (1, 1, 96, 16)
    assert flat["classifier/kernel"].shape == (512, 10)


class FirstConv(Exception):
    """Ends a network before its first convolution; holds what that would have seen."""


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transform_input_undoes_imagenet_s_normalisation(name):
    """As torchvision's: 0 becomes -1 and 1 becomes 1, whatever the mean and deviation were."""
    pixels = np.random.default_rng(0).random((1, 75, 75, 3))
    pixels[0, 0, :2] = (0, 0, 0), (1, 1, 1)
    normalized = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])

    def stop(call, args, kwargs, context):
        if isinstance(context.module, Conv):
            raise FirstConv(args[0])
        return call(*args, **kwargs)

    for transform, expected in ((True, 2 * pixels - 1), (False, normalized)):
        model = create_model(name, transform_input=transform)
        with pytest.raises(FirstConv) as seen, nn.intercept_methods(stop):
            model.apply({}, jnp.float32(normalized), train=False)
        np.testing.assert_allclose(seen.value.args[0], expected, atol=1e-6)
    with pytest.raises(UserError, match="transform_input is for RGB images, got an array of shape"):
        create_model(name, transform_input=True).apply({}, jnp.zeros((1, 75, 75, 1)), train=False)
