"""Multiply-adds against products that are counted one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from flaxcnn.analysis import count_multiply_adds, summary
from flaxcnn.layers import Conv, ConvTranspose, DepthwiseConv, local_response_norm
from flaxcnn.models import create_model

# Of images and kernels of ones, without a border, the sum of what comes out is the number of
# products: each is one.
LAYERS = {
    "strided": (Conv(5, 3, 2, padding="VALID"), (7, 8, 4)),
    "groups": (Conv(6, 3, padding="VALID", groups=2), (7, 6, 4)),
    "dilated": (Conv(5, 3, padding="VALID", dilation=2), (7, 6, 4)),
    "depthwise": (DepthwiseConv(3, multiplier=2, padding="VALID"), (7, 6, 4)),
    "1-D": (Conv(5, 3, padding="VALID"), (9, 4)),
    "3-D": (Conv(5, 2, padding="VALID"), (4, 3, 5, 2)),
    "transposed, groups": (ConvTranspose(6, 4, 2, padding="VALID", groups=2), (3, 3, 4)),
    "Flax's, groups": (nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2), (7, 6, 4)),
    "Flax's, transposed": (nn.ConvTranspose(5, (3, 3), (2, 2), padding="VALID"), (4, 3, 4)),
    "Flax's, 3-D, dilated": (
        nn.Conv(3, (2,) * 3, padding="VALID", kernel_dilation=2),
        (4, 4, 5, 2),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_product_counts_once(name):
    layer, shape = LAYERS[name]
    images = jnp.ones((1, *shape))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), images)["params"]
    params = {"kernel": jnp.ones(shapes["kernel"].shape), "bias": jnp.zeros(shapes["bias"].shape)}
    products = int(layer.apply({"params": params}, images).sum())
    found = summary(layer, shape)
    assert found.multiply_adds == products > 0
    assert found.backward_multiply_adds == products  # of the kernel alone: images have no gradient
    assert found.params == params["kernel"].size + params["bias"].size


def test_a_border_counts_and_constants_do_not():
    images = jnp.ones((1, 4, 4, 6))
    layer = Conv(2, 3, use_bias=False)
    same = jax.make_jaxpr(lambda v, x: layer.apply(v, x))(
        {"params": {"kernel": jnp.ones((3, 3, 6, 2))}}, images
    )
    assert count_multiply_adds(same) == 4 * 4 * 2 * 3 * 3 * 6
    assert count_multiply_adds(jax.make_jaxpr(local_response_norm)(images)) == 0


def test_loops_count_each_round():
    w = jnp.ones((5, 5))

    def loop(x, w):
        x = lax.scan(lambda x, _: (x @ w, None), x, None, 3)[0]
        x = lax.fori_loop(0, 4, lambda _, x: x @ w, x)
        return lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)

    once = 2 * 5 * 5
    assert count_multiply_adds(jax.make_jaxpr(loop)(jnp.ones((2, 5)), w)) == (3 + 4 + 1) * once
    forever = jax.make_jaxpr(
        lambda x, w: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    )(jnp.ones((2, 5)), w)
    assert count_multiply_adds(forever) == once  # of a loop without end, one


class Small(nn.Module):
    """What a backward pass meets: groups, transposed, shared, a constant, a part without kernel."""

    @nn.compact
    def __call__(self, x, *, train):
        x = local_response_norm(nn.relu(Conv(4, 3, groups=2)(x)))
        x = nn.BatchNorm(use_running_average=not train)(ConvTranspose(4, 2, 2)(x))
        again = Conv(4, 1, name="again")
        return nn.Dense(3)(again(again(x)).mean((1, 2)))


def test_backward_is_what_the_program_of_the_gradients_has():
    model, images = Small(), jnp.ones((1, 4, 4, 2))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def loss(params, rest, images):
        return (model.apply({"params": params, **rest}, images, train=False) ** 2).sum()

    rest = {"batch_stats": variables["batch_stats"]}
    program = jax.make_jaxpr(jax.value_and_grad(loss))(variables["params"], rest, images)
    found = summary(model, (4, 4, 2))
    assert found.training_multiply_adds == count_multiply_adds(program)


def test_forward_and_backward_of_lenet():
    """By hand: conv 20@5x5, pool, conv 50@5x5, pool, 500, 10."""
    forward = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 25 * 20 + 800 * 500 + 500 * 10
    found = summary(create_model("lenet_caffe"), (28, 28, 1))
    assert found.multiply_adds == forward == 2_293_000
    # Gradients of kernels and of inputs take as much each; the image has none.
    assert found.backward_multiply_adds == 2 * forward - 24 * 24 * 20 * 25
    assert (found.flops, found.training_flops) == (2 * forward, 2 * (3 * forward - 288_000))
    assert np.sum([layer.backward for layer in found.layers]) == found.backward_multiply_adds
