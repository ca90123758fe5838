"""Integral pose: means of maps, the network's size, and what it takes of others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count_multiply_adds, count_values
from scipy.special import softmax

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.models.integral_pose import find_means


def test_a_joint_is_the_mean_place_of_its_map():
    scores = 3 * np.sin(np.arange(2 * 4 * 6 * 3) ** 1.5).reshape(2, 4, 6, 3).astype(np.float32)
    shares = softmax(scores.astype(float), axis=(1, 2))
    rows, columns = np.indices((4, 6))
    places = [(columns + 0.5) / 6 - 0.5, (rows + 0.5) / 4 - 0.5]
    expected = np.stack([np.einsum("nhwk,hw->nk", shares, place) for place in places], axis=-1)
    np.testing.assert_allclose(find_means(jnp.asarray(scores)), expected, atol=1e-6)
    peak = np.full((1, 4, 6, 1), -50, np.float32)
    peak[0, 3, 1] = 50
    np.testing.assert_allclose(find_means(jnp.asarray(peak)), [[[-0.25, 0.375]]], atol=1e-6)


def test_size():
    of, model = variant("integral_pose"), create_model("integral_pose")
    images = jax.ShapeDtypeStruct((1, *of.input_shape), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    apply = functools.partial(model.apply, train=False)
    jaxpr, joints = jax.make_jaxpr(apply, return_shape=True)(variables, images)
    assert joints.shape == (1, 28)
    assert count_values(variables["params"]) == of.params
    assert count_values(variables["batch_stats"]) == of.statistics
    assert count_multiply_adds(jaxpr.jaxpr) == of.macs


def test_mistakes_are_told_in_one_line():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for kwargs, message in (
        ({"num_classes": 3}, "num_classes must be x and y of each joint, got 3"),
        ({"stride": 3}, "stride is 3: mobilenet_v2 has maps of stride 2, 4, 8, 16, 32"),
    ):
        model = create_model("integral_pose", **kwargs)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize(("second", "stages"), [("integral_pose", 2), ("mnist_tiny", 1)])
def test_a_cascade_of_one_network_starts_both_stages_with_it(second, stages):
    cascade = create_model("deeppose_cascade", first="integral_pose", second=second)
    assert cascade.classifier == "integral_pose"
    taken = cascade.adopt({"params": {"scores": 1}})
    assert taken == {"params": {f"stage{i + 1}": {"scores": 1} for i in range(stages)}}
