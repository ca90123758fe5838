"""A classifier slid over a larger image: dense layers as convolutions, with the same weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models._network import Network, classify
from flaxcnn.models.alexnet import DenseHeadNetwork, classify_maps

normal = nn.initializers.normal(1.0)


class DenseHead(DenseHeadNetwork):
    @nn.compact
    def __call__(self, maps, *, train):
        hidden = functools.partial(nn.Dense, kernel_init=normal, bias_init=normal)
        return classify_maps(self, maps, train=train, hidden=hidden, classifier_init=normal)


class AverageHead(Network):
    @nn.compact
    def __call__(self, maps, *, train):
        return classify(self, maps, train=train, kernel_init=normal)


MAPS = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)


def test_dense_layers_see_each_window_of_the_maps():
    """The variables are the classifier's, and each window gets what it would get alone."""
    head = DenseHead(num_classes=3, hidden=(6, 7), map_side=2)
    variables = head.init(jax.random.key(0), MAPS[:1, :2, :2], train=False)
    logits = head.clone(window=2).apply(variables, MAPS, train=False)
    windows = sliding_window_view(MAPS, (2, 2), axis=(1, 2))  # [2, 3, 4, 6, 2, 2]
    x = windows.transpose(0, 1, 2, 4, 5, 3).reshape(2, 3, 4, -1).astype(float)
    for name in ("fc1", "fc2", "classifier"):
        layer = jax.tree.map(np.asarray, variables["params"][name])
        x = x @ layer["kernel"] + layer["bias"]
        x = x if name == "classifier" else np.maximum(x, 0)
    np.testing.assert_allclose(logits, x, atol=1e-5 * np.abs(x).max())
    alone = head.apply(variables, MAPS[:, :2, :2], train=False)
    np.testing.assert_allclose(logits[:, 0, 0], alone, rtol=1e-5)


def test_averages_are_of_each_window():
    head = AverageHead(num_classes=3, window=2)
    logits, variables = head.init_with_output(jax.random.key(0), MAPS, train=False)
    means = sliding_window_view(MAPS, (2, 2), axis=(1, 2)).mean((-2, -1))
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    np.testing.assert_allclose(logits, means @ kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("darknet19", {}, (2, 1, 5)),
        ("squeezenet1_1", {}, (4, 2, 5)),
        ("nin_cifar10", {}, (23, 15, 5)),
        ("airbench94", {}, (10, 6, 5)),
        ("mobilenet_v2", {"num_classes": 0}, (2, 1, 1280)),
        ("vgg11", {"map_side": 2, "hidden": (8,)}, (2, 1, 5)),
        ("bad_design_840m", {"features": (2,), "hidden": 3}, (46, 30, 5)),
    ],
)
@pytest.mark.zoo
def test_every_kind_of_head(name, kwargs, shape):
    model = create_model(name, window=2, **{"num_classes": 5, **kwargs})
    images = jax.ShapeDtypeStruct((1, 96, 64, 3), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert logits.shape == (1, *shape)


def test_mistakes_are_named():
    for head, message in (
        (DenseHead(num_classes=3), "window is 3, and the dense layers of DenseHead see 6x6 places"),
        (AverageHead(num_classes=3), "window is 3, and the last maps of AverageHead are 2x2"),
    ):
        with pytest.raises(UserError, match=message):
            head.clone(window=3).init(jax.random.key(0), MAPS[:, :2, :2], train=False)
