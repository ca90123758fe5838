import jax
import numpy as np
import pytest
from drawn import draw_network

from flaxcnn.models.mobilenet_v2 import round_to_eight


@pytest.mark.parametrize(
    ("channels", "rounded"), [(11.2, 16), (8.4, 8), (33.6, 32), (22.4, 24), (1, 8), (1792, 1792)]
)
def test_channels_are_multiples_of_eight(channels, rounded):
    assert round_to_eight(channels) == rounded


def test_one_pixel_is_enough():
    """A narrow network whose blocks keep shape with stride 2 on 1x1 maps adds no shortcut there."""
    images = np.ones((1, 1, 1, 3), np.float32)
    model, variables = draw_network(
        "mobilenet_v2", images, width=0.35, features_only=True, out_indices=(0, 1)
    )
    before = variables["params"]["stage2_block1"]["project_bn"]
    assert (
        before["scale"].shape == variables["params"]["stage1_block1"]["project_bn"]["scale"].shape
    )
    for name in ("stage2_block1", "stage2_block2"):
        variables["params"][name]["project_bn"]["scale"] *= 0
        variables["params"][name]["project_bn"]["bias"] *= 0
        variables["batch_stats"][name]["project_bn"]["mean"] *= 0
    first, second = model.apply(variables, images, train=False)
    assert first.shape == second.shape and np.abs(first).max() > 0
    np.testing.assert_array_equal(second, 0)


def test_drop_path_is_for_training():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    plain, variables = draw_network(
        "mobilenet_v2", images, width=0.35, features_only=True, out_indices=(2,)
    )
    noisy = plain.clone(drop_path=0.9)

    def apply(model, train):
        def forward(variables, images):
            rngs = {"dropout": jax.random.key(0)}
            outputs = model.apply(
                variables, images, train=train, mutable=["batch_stats"], rngs=rngs
            )
            return outputs[0][0]

        return jax.jit(forward)(variables, images)

    np.testing.assert_array_equal(apply(plain, False), apply(noisy, False))
    assert np.abs(apply(plain, True) - apply(noisy, True)).max() > 0.1
