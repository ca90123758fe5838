"""Integral regression: means of maps, the networks' sizes, what they take and refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count_multiply_adds, count_values
from scipy.special import softmax

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.models.integral import find_means, spread


def test_a_place_is_the_mean_of_its_map():
    scores = 3 * np.sin(np.arange(2 * 4 * 6 * 3) ** 1.5).reshape(2, 4, 6, 3).astype(np.float32)
    shares = softmax(scores.astype(float), axis=(1, 2))
    rows, columns = np.indices((4, 6))
    places = [(columns + 0.5) / 6 - 0.5, (rows + 0.5) / 4 - 0.5]
    expected = np.stack([np.einsum("nhwk,hw->nk", shares, place) for place in places], axis=-1)
    means = jax.jit(lambda x: find_means(spread(x)))(scores)
    np.testing.assert_allclose(means, expected, atol=1e-6)
    peak = jnp.zeros((1, 4, 6, 1)).at[0, 3, 1].set(1)
    np.testing.assert_allclose(find_means(peak), [[[-0.25, 0.375]]], atol=1e-6)
    stretched = find_means(peak, to_borders=True)
    np.testing.assert_allclose(stretched, [[[1 / 5 - 0.5, 0.5]]], atol=1e-6)


@pytest.mark.parametrize(("name", "outputs"), [("integral_pose", 28), ("integral_box", 1004)])
def test_size(name, outputs):
    of, model = variant(name), create_model(name)
    images = jax.ShapeDtypeStruct((1, *of.input_shape), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    apply = functools.partial(model.apply, train=False)
    jaxpr, out = jax.make_jaxpr(apply, return_shape=True)(variables, images)
    assert out.shape == (1, outputs)
    assert count_values(variables["params"]) == of.params
    assert count_values(variables["batch_stats"]) == of.statistics
    assert count_multiply_adds(jaxpr.jaxpr) == of.macs


def test_mistakes_are_told_in_one_line():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for name, kwargs, message in (
        ("integral_pose", {"num_classes": 3}, "must be x and y of each joint, got 3"),
        ("integral_box", {"num_classes": 4}, "must be classes and four sides, got 4"),
        ("integral_box", {"stride": 3}, "mobilenet_v2 has maps of stride 2, 4, 8, 16, 32"),
    ):
        model = create_model(name, **kwargs)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize(("second", "stages"), [("integral_pose", 2), ("mnist_tiny", 1)])
def test_a_cascade_of_one_network_starts_both_stages_with_it(second, stages):
    cascade = create_model("deeppose_cascade", first="integral_pose", second=second)
    assert cascade.classifier == "integral_pose"
    taken = cascade.adopt({"params": {"scores": 1}})
    assert taken == {"params": {f"stage{i + 1}": {"scores": 1} for i in range(stages)}}


def test_a_backbone_takes_arguments():
    kwargs = {"backbone": "cifar_resnet20", "stride": 2}
    wide, thin = (
        create_model("integral_box", num_classes=6, backbone_kwargs=of, **kwargs)
        for of in ({}, {"features": 8})
    )
    images = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    assert hash(wide) != hash(thin)
    shapes = [
        jax.eval_shape(functools.partial(m.init, train=False), jax.random.key(0), images)
        for m in (wide, thin)
    ]
    assert [x["params"]["backbone"]["stem_conv"]["kernel"].shape[-1] for x in shapes] == [16, 8]
