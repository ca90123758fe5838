import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.models import create_model
from flaxcnn.models.mobilenet_v2 import round_to_eight


@pytest.mark.parametrize(
    ("channels", "rounded"), [(11.2, 16), (8.4, 8), (33.6, 32), (22.4, 24), (1, 8), (1792, 1792)]
)
def test_channels_are_multiples_of_eight(channels, rounded):
    assert round_to_eight(channels) == rounded


def test_one_pixel_is_enough():
    """A narrow network whose blocks keep shape with stride 2 on 1x1 maps adds no shortcut there."""
    model = create_model("mobilenet_v2", width=0.35, num_classes=3)
    images = jnp.ones((1, 1, 1, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    before = variables["params"]["stage2_block1"]["project_bn"]
    assert (
        before["scale"].shape == variables["params"]["stage1_block1"]["project_bn"]["scale"].shape
    )
    chosen = model.clone(features_only=True, out_indices=(1, 2))
    variables["params"]["stage2_block1"]["project_bn"]["scale"] *= 0
    variables["params"]["stage2_block2"]["project_bn"]["scale"] *= 0
    first, second = chosen.apply(variables, images, train=False)
    assert first.shape == second.shape and np.abs(first).max() > 0
    np.testing.assert_array_equal(second, 0)


def test_drop_path_is_for_training():
    plain = create_model("mobilenet_v2", width=0.35, features_only=True, out_indices=(5,))
    noisy = plain.clone(drop_path=0.9)
    images = jnp.ones((2, 32, 32, 3))
    variables = plain.init(jax.random.key(0), images, train=False)

    def apply(model, train):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=train, mutable=["batch_stats"], rngs=rngs)[0][0]

    np.testing.assert_array_equal(apply(plain, False), apply(noisy, False))
    assert np.abs(apply(plain, True) - apply(noisy, True)).max() > 0.1
