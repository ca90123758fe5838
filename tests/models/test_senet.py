"""SENet: its dropout, its smallest images, and the names of both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant


def test_senet154_drops_features_before_the_classifier():
    model = create_model("senet154", depths=(1, 1), features=64, groups=4, num_classes=5)
    images = jnp.ones((2, 32, 32, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    assert not np.array_equal(train(jax.random.key(0)), train(jax.random.key(1)))
    assert create_model("senet154").dropout == 0.2
    assert create_model("senet154_timm").dropout == create_model("seresnet50").dropout == 0


def test_smallest_images():
    model = create_model("senet154", depths=(1, 1, 1, 1))

    def init(images):
        return model.init(jax.random.key(0), images, train=False)

    jax.eval_shape(init, jnp.zeros((1, 3, 3, 3)))
    with pytest.raises(UserError, match="SENet needs images of at least 3x3"):
        jax.eval_shape(init, jnp.zeros((1, 2, 2, 3)))


def test_legacy_names_are_the_authors_networks():
    for name, ours in (("seresnet50", "seresnet50_v1"), ("senet154", "senet154")):
        assert variant(f"legacy_{name}") is variant(ours)
    assert create_model("legacy_seresnext50_32x4d").ceil_pool
    assert not create_model("seresnext50_32x4d_timm").ceil_pool
