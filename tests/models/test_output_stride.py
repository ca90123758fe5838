"""Dilated networks: at the places that the undilated one has, its own values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, feature_info

# One for each way that padding and strides are told; fewer blocks, as each is like the other.
NETWORKS = {
    "resnet18": {"features": 8, "depths": (1, 1, 2, 2)},
    "resnet50_v1": {"features": 8, "depths": (1, 1, 2, 2)},
    "mobilenet_v1_0.25_128": {"width": 0.1},
    "mobilenet_v2_0.35_96": {"width": 0.2},
}


DEEPER = ("resnet18", "mobilenet_v1_0.25_128", "mobilenet_v2_0.35_96")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.zoo] * (n in DEEPER)) for n in NETWORKS]
)
def test_values_are_those_of_the_undilated_network(name):
    """The hole algorithm's defining property; sides of which one is no power of two."""
    model = create_model(name, features_only=True, **NETWORKS[name])
    images = jax.random.normal(jax.random.key(0), (1, 64, 96, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), images, train=False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(np.float32), shapes)
    variables["params"] = jax.tree.map(lambda x: x - 0.2 * (x.ndim == 4), variables["params"])
    dilated = model.clone(output_stride=8)
    info, plain = (feature_info(m, (64, 96, 3)) for m in (dilated, model))
    assert [f.stride for f in info] == [min(f.stride, 8) for f in plain]
    both = jax.jit(lambda v, x: [m.apply(v, x, train=False) for m in (dilated, model)])
    for ours, theirs in zip(*both(variables, images), strict=True):
        step = ours.shape[1] // theirs.shape[1]
        scale = float(jnp.abs(theirs).max())
        assert scale > 0
        np.testing.assert_allclose(ours[:, ::step, ::step], theirs, rtol=0, atol=1e-5 * scale)


def test_other_strides_are_refused():
    model = create_model("mobilenet_v2", output_stride=4)
    with pytest.raises(UserError, match="MobileNetV2: output_stride must be 8, 16 or 32, got 4"):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        )
