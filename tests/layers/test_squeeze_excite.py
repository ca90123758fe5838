import jax
import numpy as np

from flaxcnn.layers import SqueezeExcite


def test_channels_are_weighted_by_a_gate_of_their_averages():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    layer = SqueezeExcite(reduction=4)
    params = {
        "reduce": {"kernel": rng.standard_normal((1, 1, 8, 2)), "bias": rng.standard_normal(2)},
        "expand": {"kernel": rng.standard_normal((1, 1, 2, 8)), "bias": rng.standard_normal(8)},
    }
    hidden = x.mean((1, 2)) @ params["reduce"]["kernel"][0, 0] + params["reduce"]["bias"]
    gate = np.maximum(hidden, 0) @ params["expand"]["kernel"][0, 0] + params["expand"]["bias"]
    expected = x / (1 + np.exp(-gate))[:, None, None]
    assert np.ptp(expected / x) > 0.1  # the gates differ
    shapes = jax.tree.map(np.shape, layer.init(jax.random.key(0), x)["params"])
    assert shapes == jax.tree.map(np.shape, params)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-6)
