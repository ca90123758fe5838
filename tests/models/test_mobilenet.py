import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_network, evaluate

from flaxcnn.errors import UserError
from flaxcnn.models import create_model


def list_sides(name, side, **kwargs):
    """The side of each stage's maps."""
    model = create_model(name, features_only=True, **kwargs)
    maps = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0],
        jnp.zeros((1, side, side, 3)),
    )
    return [m.shape[1] for m in maps]


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        ("same", [39, 20, 10, 5, 3]),
        ("keras", [39, 19, 9, 4, 2]),  # an odd map loses a pixel, but not in the stem
        ("symmetric", [39, 20, 10, 5, 3]),
    ],
)
def test_odd_sides(padding, sides):
    assert list_sides("mobilenet_v1", 77, padding=padding) == sides


def test_same_padding_is_keras_where_maps_are_even():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    model, variables = draw_network("mobilenet_v1_0.25_128", images, num_classes=3)
    logits = evaluate(model, variables, images)
    same = evaluate(model.clone(padding="same"), variables, images)
    symmetric = evaluate(model.clone(padding="symmetric"), variables, images)
    np.testing.assert_array_equal(logits, same)
    assert np.abs(logits - symmetric).max() > 1e-3 * np.abs(logits).max()


def test_smallest_image():
    assert list_sides("mobilenet_v1", 31)[-1] == 1
    assert list_sides("mobilenet_v1", 1, padding="same")[-1] == 1
    with pytest.raises(UserError, match="MobileNet needs images of at least 31x31, "):
        list_sides("mobilenet_v1", 30)


def test_activations_of_the_paper_are_not_cut_off():
    for relu6, largest in ((True, 6.0), (False, 60.0)):
        images = np.ones((1, 32, 32, 3), np.float32)
        model, variables = draw_network(
            "mobilenet_v1_0.25_128", images, relu6=relu6, features_only=True, out_indices=(0,)
        )
        variables["params"]["block1"]["pointwise_bn"]["bias"] += 60
        (maps,) = model.apply(variables, images, train=False)
        assert maps.max() >= largest and (maps.max() == 6) == relu6
