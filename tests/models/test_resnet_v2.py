"""ResNetV2: where its two forms differ."""

import jax
import jax.numpy as jnp

from flaxcnn.models import create_model, variant
from flaxcnn.models._network import feature_info


def test_strides_of_the_two_forms():
    strides = {
        name: [feature.stride for feature in feature_info(create_model(name), (64, 64, 3))]
        for name in ("resnet50v2", "resnetv2_50")
    }
    assert strides == {"resnet50v2": [2, 8, 16, 32, 32], "resnetv2_50": [2, 4, 8, 16, 32]}


def test_names_with_timm_are_aliases():
    assert variant("resnetv2_101_timm") is variant("resnetv2_101")


def test_odd_and_smallest_images():
    for name in ("resnet50v2", "resnetv2_50"):
        model = create_model(name, num_classes=10)
        for height, width in ((1, 1), (33, 70)):
            logits, _ = jax.eval_shape(
                lambda x, model=model: model.init_with_output(jax.random.key(0), x, train=False),
                jnp.zeros((2, height, width, 3)),
            )
            assert logits.shape == (2, 10)
