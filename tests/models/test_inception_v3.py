import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, export


def shapes_of(model, side, train=False):
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=train), images
    )


@pytest.mark.parametrize("name", ["inception_v3", "inception_v3_keras"])
def test_smallest_images(name):
    model = create_model(name)
    assert shapes_of(model, 75)[0].shape == (2, 1000)
    with pytest.raises(UserError, match="^InceptionV3 needs images of at least 75x75.*74x74"):
        shapes_of(model, 74)


def test_auxiliary_classifier_needs_whole_images_in_training_only():
    model = create_model("inception_v3_aux", num_classes=7)
    logits, variables = shapes_of(model, 299)
    assert logits.shape == (2, 7)
    assert "auxiliary_classifier" in variables["params"]
    with pytest.raises(UserError, match="^InceptionV3 needs images of at least 299x299"):
        shapes_of(model, 298)
    images = jax.ShapeDtypeStruct((2, 107, 107, 3), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    assert jax.eval_shape(apply, variables, images).shape == (2, 7)


def test_no_auxiliary_classifier_without_classes():
    features, variables = shapes_of(create_model("inception_v3_aux", num_classes=0), 75, True)
    assert features.shape == (2, 2048)
    assert not any(name.startswith("auxiliary") for name in variables["params"])


def test_weights_of_the_auxiliary_classifier_may_be_left_over():
    shapes = shapes_of(create_model("inception_v3_aux", num_classes=5), 299)[1]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.random(s.shape, np.float32), shapes)
    tensors = export("inception_v3_aux", variables, "torchvision", num_classes=5)
    with pytest.warns(UserWarning, match=r"not used: AuxLogits\.conv0"):
        converted = convert("inception_v3", tensors, "torchvision", num_classes=5)
    for path, value in jax.tree.leaves_with_path(converted):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, variables)
        np.testing.assert_array_equal(value, ours)


@pytest.mark.parametrize(
    ("name", "layout"), [("inception_v3", "keras"), ("inception_v3_keras", "timm")]
)
def test_the_other_forms_layout_is_refused(name, layout):
    with pytest.raises(UserError, match="InceptionV3"):
        convert(name, {}, layout)
