"""DenseNet: input sizes, stages, dropout."""

import functools

import jax
import jax.numpy as jnp
import pytest

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models._network import feature_info

SMALL = {"depths": (1, 1, 1, 1), "growth": 8, "stem_features": 16, "num_classes": 5}


def test_smallest_image():
    model = create_model("densenet121", **SMALL)
    init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    logits, _ = jax.eval_shape(init, jnp.ones((1, 29, 43, 3)))
    assert logits.shape == (1, 5)
    with pytest.raises(UserError, match="DenseNet needs images of at least 29x29, .* 28x43x3"):
        jax.eval_shape(init, jnp.ones((1, 28, 43, 3)))


def test_stages_are_dense_blocks():
    stages = feature_info(create_model("densenet121", **SMALL), (224, 224, 3))
    assert [stage.channels for stage in stages] == [16, 24, 20, 18, 17]
    assert [stage.stride for stage in stages] == [2, 4, 8, 16, 32]


def test_dropout_follows_every_convolution_but_the_first():
    model = create_model("densenet121", **SMALL, dropout=0.2)
    images = jnp.ones((2, 32, 32, 3))

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(
            variables, images, train=True, rngs=rngs, mutable=True, capture_intermediates=True
        )[1]["intermediates"]

    calls = [
        path[-3].key
        for path, _ in jax.tree_util.tree_leaves_with_path(jax.eval_shape(run, images))
        if len(path) > 2
    ]
    convolutions = sum("conv" in name for name in calls)
    of_layers = sum("drop" in name and name != "dropout" for name in calls)  # not the head's
    assert of_layers == convolutions - 1 == 11
