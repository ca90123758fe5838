"""Whole networks with a batch divided over a mesh, with strict types, and with no images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_zoo import SMALLEST

from flaxcnn.models import create_model, variant

needs_typed_products = pytest.mark.skipif(
    jax.__version_info__ < (0, 9), reason="jax's own gradient of a product fails on Explicit axes"
)

# Less of a network where its blocks repeat, so that they are traced in a moment.
SHORT = {
    "densenet121": {"depths": (2, 1)},
    "resnet18": {"depths": (1, 1), "dropout": 0.2, "drop_path": 0.2},
    "senet154_timm": {"depths": (1, 1), "drop_path": 0.2},
    "resnetv2_50": {"depths": (1, 1)},
    "resnet50v2": {"depths": (1, 1)},
    "darknet53": {"depths": (1, 1), "dropout": 0.2},
    "xception": {"middle_blocks": 1},
    "inception_v4": {"depths": (1, 1, 1)},
    "inception_resnet_v1": {"depths": (1, 1, 1)},
    "nasnet_a_mobile": {"cells": 1, "drop_path": 0.2},
}
WHOLE = {"mnist_mlp_512", "lenet5_1998", "lenet_caffe", "cifar_cnn_5x5_bn", "alexnet", "vgg11_lrn"}
WHOLE |= {
    "airbench94",
    "squeezenet1_1",
    "nin_cifar10",
    "darknet19",
    "bad_design_840m",
    "pyramid_cnn",
}
SLOW = {"nasnet_a_mobile", "inception_v4", "inception_resnet_v1", "xception", "darknet19"}
NAMES = sorted(WHOLE | set(SHORT) | set(SMALLEST.values()))
QUICK = (WHOLE | set(SHORT)) - SLOW


def each_network(quick):
    marks = {name: [] if name in quick else [pytest.mark.zoo] for name in NAMES}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n]) for n in NAMES])


def make_network(name):
    model = create_model(name, **SHORT.get(name, {}))
    shape = variant(name).input_shape
    init = functools.partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return model, jax.eval_shape(init, jax.random.key(0), images), shape


def make_step(model):
    """What training computes: outputs, and the gradient to the parameters and the images."""

    def loss(params, images, variables):
        outputs, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return sum(x.mean() for x in jax.tree.leaves(outputs)), (outputs, updates)

    def step(variables, images):
        differentiate = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return differentiate(variables["params"], images, variables)

    return step


@needs_typed_products
@each_network(QUICK)
def test_a_divided_batch_stays_divided_with_strict_types(name):
    """Types say so under Explicit axes, and nothing is promoted silently, while it is traced."""
    mesh = jax.make_mesh((8,), ("b",), axis_types=(AxisType.Explicit,))
    model, variables, shape = make_network(name)
    images = jax.ShapeDtypeStruct((8, *shape), jnp.float32, sharding=NamedSharding(mesh, P("b")))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("strict"):
        gradients, (outputs, _) = jax.eval_shape(make_step(model), variables, images)
    for output in jax.tree.leaves(outputs):
        assert output.sharding.spec == P("b", *(None,) * (output.ndim - 1))
    assert gradients[1].sharding.spec == P("b", None, None, None)
    for gradient in jax.tree.leaves(gradients[0]):
        assert gradient.sharding is None or not any(gradient.sharding.spec)


@each_network(QUICK & WHOLE)
def test_no_images_give_no_logits(name):
    model, variables, shape = make_network(name)
    images = jax.ShapeDtypeStruct((0, *shape), jnp.float32)
    logits = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    assert (logits.shape, logits.dtype) == ((0, model.num_classes), jnp.float32)


@pytest.mark.parametrize(
    "axis_type", [pytest.param(AxisType.Explicit, marks=needs_typed_products), AxisType.Auto]
)
def test_a_divided_batch_has_the_values_of_one_device(axis_type):
    """A step of a residual network with BatchNorm, dropout and drop-path, on 8 devices and on 1."""
    arguments = {"depths": (2,), "features": 4, "dropout": 0.2, "drop_path": 0.2, "num_classes": 3}
    model = create_model("resnet18", **arguments)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(16, 8, 8, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images[:1], train=False)
    step = jax.jit(make_step(model))
    wanted = step(variables, images)
    mesh = jax.make_mesh((8,), ("b",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(images, NamedSharding(mesh, P("b")))
        found = step(jax.device_put(variables, NamedSharding(mesh, P())), divided)
    assert found[1][0].sharding.spec[0] == "b"
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
