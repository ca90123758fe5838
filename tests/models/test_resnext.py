"""ResNeXt: the widths of its groups."""

import jax
import jax.numpy as jnp
import pytest

from flaxcnn.models import create_model


@pytest.mark.parametrize(
    ("name", "width", "groups"),
    [
        ("resnext50_32x4d", 4, 32),
        ("resnext101_32x4d", 4, 32),
        ("resnext101_64x4d", 4, 64),
        ("resnext101_32x8d", 8, 32),
    ],
)
def test_groups_double_in_width_from_stage_to_stage(name, width, groups):
    model = create_model(name, num_classes=10)
    params = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False)["params"],
        jnp.zeros((1, 32, 32, 3)),
    )
    for stage in range(4):
        kernel = params[f"stage{stage + 1}_block1"]["conv2"]["kernel"]
        wider = width * 2**stage
        assert kernel.shape == (3, 3, wider, wider * groups)
