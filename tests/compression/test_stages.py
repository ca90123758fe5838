"""What is pruned, and what values weights share."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from flaxcnn.compression.prune import apply_masks, prune
from flaxcnn.compression.share import share, share_kernel
from flaxcnn.errors import UserError


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)},
        "fc": {
            "kernel": rng.normal(size=(40, 10)).astype(np.float32) * 0.01,
            "bias": np.ones(10, np.float32),
        },
        "bn": {"scale": np.ones(4, np.float32)},
    }


def test_the_smallest_scores_go():
    """Lee 2021, equation 4, as it is written: a loop over the weights of each layer."""
    params = make_params()
    masks = prune(params, 0.7)
    assert set(masks) == {"conv/kernel", "fc/kernel"}
    scores = {}
    for name in masks:
        squares = np.float64(params[name.partition("/")[0]]["kernel"]).reshape(-1) ** 2
        scores[name] = np.array([s / squares[squares >= s].sum() for s in squares])
    order = np.argsort(np.concatenate(list(scores.values())))
    expected = np.ones(len(order), bool)
    expected[order[: round(0.7 * len(order))]] = False
    found = np.concatenate([masks[name].reshape(-1) for name in scores])
    np.testing.assert_array_equal(found, expected)
    assert masks["conv/kernel"].any() and masks["fc/kernel"].any()


def test_pruned_weights_are_zero_and_stay_pruned():
    params = make_params()
    masks = prune(params, 0.5)
    pruned = apply_masks(params, masks)
    np.testing.assert_array_equal(pruned["fc"]["kernel"] != 0, masks["fc/kernel"])
    assert pruned["fc"]["bias"] is params["fc"]["bias"]
    more = prune(pruned, 0.8)
    assert not any((more[name] & ~masks[name]).any() for name in masks)
    np.testing.assert_array_equal(prune(pruned, 0.0)["fc/kernel"], masks["fc/kernel"])


def test_centroids_are_those_of_k_means():
    """scikit-learn's, from the same start, of the weights that are not zero."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(50, 20)).astype(np.float32)
    kernel[rng.random(kernel.shape) < 0.5] = 0
    weights = kernel[kernel != 0]
    start = np.linspace(weights.min(), weights.max(), 8).reshape(-1, 1)
    fitted = KMeans(8, init=start, n_init=1, tol=0, max_iter=500).fit(weights.reshape(-1, 1))
    expected = fitted.cluster_centers_[fitted.labels_, 0]
    shared = share_kernel(kernel, 8)
    np.testing.assert_array_equal(shared == 0, kernel == 0)
    np.testing.assert_allclose(shared[kernel != 0], expected, rtol=1e-4, atol=1e-5)


def test_few_values_stay_as_they_are():
    kernel = np.array([[0, 0.5, 0.25, -3e-20]], np.float32)
    assert share({"fc": {"kernel": kernel}}, 2)["fc"]["kernel"] is kernel
    assert len(np.unique(share({"fc": {"kernel": kernel}}, 1)["fc"]["kernel"])) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune(make_params(), 1.0), r"sparsity must be in \[0, 1\)"),
        (lambda: prune({"bn": {"scale": np.ones(3)}}, 0.5), "no kernels"),
        (lambda: share(make_params(), 9), r"bits must be in 1\.\.8"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message):
        call()
