"""Inception-ResNet: v1 and the figures of v2 against a forward pass in NumPy, and other sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from counting import count_values
from draw import draw_images, draw_weight
from flax import traverse_util

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert

NORM = ("scale", "bias", "mean", "var")


class Weights:
    """Drawn variables of a network, and its layers with them in NumPy."""

    def __init__(self, model, images):
        shapes = jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), jnp.asarray(images)
        )
        kinds = {"scale": "gamma", "var": ".var"}
        self.flat = {}
        for path, leaf in traverse_util.flatten_dict(shapes).items():
            name = "/".join(path[1:-1]) + "/" + kinds.get(path[-1], path[-1])
            fan_in = int(np.prod(leaf.shape[:-1]))
            self.flat[path] = draw_weight(name, leaf.shape, fan_in, gain=1.5)
        self.variables = traverse_util.unflatten_dict(self.flat)
        self.values = {"/".join(path[1:]): value for path, value in self.flat.items()}
        self.used = set()

    def get(self, path):
        self.used.add(path)
        return self.values[path]

    def unit(self, x, path, features, size, stride=1, same=None):
        """Convolution, BatchNorm, ReLU; windows of stride 1 keep the size unless same=False."""
        height, width = (size, size) if isinstance(size, int) else size
        kernel = self.get(f"{path}/conv/kernel")
        assert kernel.shape == (height, width, x.shape[-1], features)
        same = stride == 1 if same is None else same
        border = ((height // 2,) * 2, (width // 2,) * 2) if same else 0
        x = layers.conv2d(x, kernel, stride=stride, padding=border)
        norm = [self.get(f"{path}/bn/{leaf}") for leaf in NORM]
        return layers.relu(layers.batch_norm(x, *norm, epsilon=1e-3))

    def branch(self, x, path, *units):
        """Units after one another: (features, size) or (features, size, stride)."""
        for i, unit in enumerate(units, 1):
            x = self.unit(x, f"{path}_conv{i}", *unit)
        return x

    def residual(self, x, path, scale, *branches):
        """Branches, joined, back to the channels of x, scaled and added."""
        y = [self.branch(x, f"{path}/branches/branch{i}", *b) for i, b in enumerate(branches, 1)]
        kernel, bias = (self.get(f"{path}/expand/{leaf}") for leaf in ("kernel", "bias"))
        y = layers.conv2d(np.concatenate(y, -1), kernel, bias)
        return layers.relu(x + scale * y)

    def head(self, x):
        x = layers.global_avg_pool(x)
        return layers.dense(x, self.get("classifier/kernel"), self.get("classifier/bias"))


def halve(x):
    return layers.max_pool(x, 3, 2)


def join(*maps):
    return np.concatenate(maps, -1)


def start(w, x):
    x = w.unit(x, "stem_conv1", 32, 3, 2)
    x = w.unit(x, "stem_conv2", 32, 3, same=False)
    return w.unit(x, "stem_conv3", 64, 3)


def forward_v1(w, x):
    x = halve(start(w, x))  # figure 14
    x = w.unit(x, "stem_conv4", 80, 1)
    x = w.unit(x, "stem_conv5", 192, 3, same=False)
    x = w.unit(x, "stem_conv6", 256, 3, 2)
    for i in range(1, 6):  # figure 10
        three = (32, 1), (32, 3), (32, 3)
        x = w.residual(x, f"block_a{i}", 0.17, three[:1], three[:2], three)
    x = join(  # figure 7 with k, l, m, n = 192, 192, 256, 384
        w.branch(x, "reduction_a/branch1", (384, 3, 2)),
        w.branch(x, "reduction_a/branch2", (192, 1), (192, 3), (256, 3, 2)),
        halve(x),
    )
    assert x.shape[-1] == 896
    for i in range(1, 11):  # figure 11
        factorised = (128, 1), (128, (1, 7)), (128, (7, 1))
        x = w.residual(x, f"block_b{i}", 0.1, [(128, 1)], factorised)
    x = join(  # figure 12
        w.branch(x, "reduction_b/branch1", (256, 1), (384, 3, 2)),
        w.branch(x, "reduction_b/branch2", (256, 1), (256, 3, 2)),
        w.branch(x, "reduction_b/branch3", (256, 1), (256, 3), (256, 3, 2)),
        halve(x),
    )
    assert x.shape[-1] == 1792
    for i in range(1, 6):  # figure 13
        factorised = (192, 1), (192, (1, 3)), (192, (3, 1))
        x = w.residual(x, f"block_c{i}", 0.2, [(192, 1)], factorised)
    return w.head(x)


def forward_v2(w, x):
    x = start(w, x)  # figure 3
    x = join(halve(x), w.unit(x, "stem_mixed1/branch2_conv1", 96, 3, 2))
    one, two = (f"stem_mixed2/branch{i}" for i in (1, 2))
    y = w.branch(x, one, (64, 1))
    z = w.branch(x, two, (64, 1), (64, (1, 7)), (64, (7, 1)))
    y = w.unit(y, f"{one}_conv2", 96, 3, same=False)
    x = join(y, w.unit(z, f"{two}_conv4", 96, 3, same=False))
    x = join(w.unit(x, "stem_mixed3/branch1_conv1", 192, 3, 2), halve(x))
    assert x.shape[-1] == 384
    for i in range(1, 6):  # figure 16
        deep = (32, 1), (48, 3), (64, 3)
        x = w.residual(x, f"block_a{i}", 0.17, [(32, 1)], [(32, 1), (32, 3)], deep)
    x = join(  # figure 7 with k, l, m, n = 256, 256, 384, 384
        w.branch(x, "reduction_a/branch1", (384, 3, 2)),
        w.branch(x, "reduction_a/branch2", (256, 1), (256, 3), (384, 3, 2)),
        halve(x),
    )
    assert x.shape[-1] == 1152
    for i in range(1, 11):  # figure 17
        factorised = (128, 1), (160, (1, 7)), (192, (7, 1))
        x = w.residual(x, f"block_b{i}", 0.1, [(192, 1)], factorised)
    x = join(  # figure 18
        w.branch(x, "reduction_b/branch1", (256, 1), (384, 3, 2)),
        w.branch(x, "reduction_b/branch2", (256, 1), (288, 3, 2)),
        w.branch(x, "reduction_b/branch3", (256, 1), (288, 3), (320, 3, 2)),
        halve(x),
    )
    assert x.shape[-1] == 2144
    for i in range(1, 6):  # figure 19
        factorised = (192, 1), (224, (1, 3)), (256, (3, 1))
        x = w.residual(x, f"block_c{i}", 0.2, [(192, 1)], factorised)
    return w.head(x)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("inception_resnet_v1", forward_v1),
        pytest.param("inception_resnet_v2_paper", forward_v2, marks=pytest.mark.zoo),
    ],
)
def test_equals_numpy(name, forward):
    model = create_model(name, num_classes=10)
    images = draw_images(2, 91, 107, 3)
    weights = Weights(model, images)
    expected = forward(weights, images)
    assert weights.used == set(weights.values)
    logits = jax.jit(functools.partial(model.apply, train=False))(weights.variables, images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "kwargs", "params"),
    [
        ("inception_resnet_v2", {"norm_scale": False}, 55_813_192),  # Keras
        ("inception_resnet_v1", {"depths": (5, 10, 6)}, 24_357_096),  # facenet, 1000 classes
    ],
)
def test_counts_of_other_ports(name, kwargs, params):
    model = create_model(name, **kwargs)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 75, 75, 3))
    )
    assert count_values(variables["params"]) == params


def test_smallest_and_odd_sizes():
    for name in ("inception_resnet_v1", "inception_resnet_v2", "inception_resnet_v2_paper"):
        model = create_model(name, num_classes=10, depths=(1, 1, 1), drop_path=0.2)
        for height, width in ((75, 75), (86, 131)):
            images = jnp.zeros((1, height, width, 3))
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            logits = jax.eval_shape(
                lambda x, m=model, k=keys: m.init_with_output(k, x, train=True)[0], images
            )
            assert logits.shape == (1, 10)
        with pytest.raises(
            UserError, match="^InceptionResNet needs images of at least 75x75, .*got 80x74"
        ):
            jax.eval_shape(
                lambda x, m=model: m.init(jax.random.key(0), x, train=False),
                jnp.zeros((1, 80, 74, 3)),
            )


def test_networks_without_a_port_have_no_layout():
    with pytest.raises(UserError, match="nobody else has weights of Inception-ResNet 'v1'"):
        convert("inception_resnet_v1", {}, layout="keras")
