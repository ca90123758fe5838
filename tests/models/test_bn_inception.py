"""BN-Inception and SE-BN-Inception against NumPy, by the names of the latter's Caffe file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, relative_error
from numpy_layers import (
    avg_pool,
    batch_norm,
    conv2d,
    dense,
    global_avg_pool,
    max_pool,
    relu,
)

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import export

AVERAGES = ("3a", "3b", "4a", "4b", "4c", "4d", "5a")
REDUCTIONS = ("3c", "4e")


def forward(tensors, x):
    """Logits of the network whose weights these are, with gates if it has them."""

    def conv(x, name, stride=1, padding=0):
        kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
        leaves = (tensors[f"{name}/bn.{leaf}"] for leaf in ("weight", "bias", "mean", "var"))
        return relu(batch_norm(conv2d(x, kernel, None, stride, padding), *leaves, 1e-5))

    def gate(x, name):
        down, up = f"{name}_1x1_down", f"{name}_1x1_up"
        y = global_avg_pool(x)
        y = relu(dense(y, tensors[f"{down}.weight"][:, :, 0, 0].T, tensors[f"{down}.bias"]))
        y = dense(y, tensors[f"{up}.weight"][:, :, 0, 0].T, tensors[f"{up}.bias"])
        return x / (1 + np.exp(-y[:, None, None]))

    def module(x, number):
        name = f"inception_{number}"
        stride = 2 if number in REDUCTIONS else 1
        double = conv(conv(x, f"{name}/double3x3_reduce"), f"{name}/double3x3a", padding=1)
        branches = [
            conv(conv(x, f"{name}/3x3_reduce"), f"{name}/3x3", stride, 1),
            conv(double, f"{name}/double3x3b", stride, 1),
        ]
        if number in REDUCTIONS:
            branches.append(max_pool(x, 3, 2, ceil_mode=True))
        else:
            pool = avg_pool if number in AVERAGES else max_pool
            branches.insert(0, conv(x, f"{name}/1x1"))
            branches.append(conv(pool(x, 3, 1, 1), f"{name}/pool_proj"))
        y = np.concatenate(branches, axis=-1)
        return gate(y, name) if f"{name}_1x1_up.weight" in tensors else y

    x = max_pool(conv(x, "conv1/7x7_s2", 2, 3), 3, 2, ceil_mode=True)
    x = conv(conv(x, "conv2/3x3_reduce"), "conv2/3x3", padding=1)
    x = max_pool(x, 3, 2, ceil_mode=True)
    for number in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        x = module(x, number)
    return dense(global_avg_pool(x), tensors["classifier.weight"].T, tensors["classifier.bias"])


@pytest.mark.parametrize("name", ["bn_inception", "se_bn_inception"])
def test_logits_are_those_of_numpy(name):
    images = draw_images(2, 96, 64, 3)
    model, variables = draw_network(name, images, num_classes=10)
    tensors = export(name, variables, "caffe", num_classes=10)
    assert relative_error(evaluate(model, variables, images), forward(tensors, images)) < 1e-4


@pytest.mark.parametrize("side", [7, 31, 101, 223, 225])
def test_odd_sizes(side):
    """Where both reductions have as many windows in the convolutions as in the maximum."""
    model = create_model("bn_inception", features_only=True)
    maps = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0],
        jnp.zeros((1, side, 224, 3)),
    )
    heights = [m.shape[1] for m in maps]
    assert heights[3] == -(-heights[2] // 2) and heights[4] == -(-heights[3] // 2)


def test_smallest_images():
    model = create_model("bn_inception")
    with pytest.raises(UserError, match="BNInception needs images of at least 7x7"):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 6, 9, 3))
        )
