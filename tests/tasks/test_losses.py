"""Losses against NumPy, SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from flaxcnn.errors import UserError
from flaxcnn.tasks import losses

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(12, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 12).astype(np.int32)
ONE_HOT = np.eye(5)[LABELS]
LOGIT = 2 * RNG.normal(size=(12, 1)).astype(np.float32)
BITS = RNG.integers(0, 2, 12).astype(np.int32)


def check(loss, expected, logits=LOGITS, labels=LABELS):
    assert loss.shape == labels.shape
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-6)


def make(name, **settings):
    return jax.jit(losses.make_loss(name=name, **settings))


def test_cross_entropy_is_scikit_learns_log_loss():
    loss = make("cross_entropy")(LOGITS, LABELS)
    check(loss, -log_softmax(LOGITS.astype(float), -1)[np.arange(12), LABELS])
    expected = log_loss(LABELS, softmax(LOGITS.astype(float), -1), labels=range(5))
    np.testing.assert_allclose(loss.mean(), expected, rtol=1e-5)


def test_label_smoothing_moves_a_share_to_all_classes():
    targets = 0.9 * ONE_HOT + 0.1 / 5
    expected = -(targets * log_softmax(LOGITS.astype(float), -1)).sum(-1)
    check(make("cross_entropy", label_smoothing=0.1)(LOGITS, LABELS), expected)


def test_cross_entropy_refuses_one_output():
    with pytest.raises(UserError, match="loss.name.*one output"):
        make("cross_entropy")(LOGIT, BITS)


def test_binary_cross_entropy_of_one_output():
    p = expit(LOGIT[:, 0].astype(float))
    expected = -np.where(BITS == 1, np.log(p), np.log(1 - p))
    loss = make("binary_cross_entropy")(LOGIT, BITS)
    check(loss, expected)
    np.testing.assert_allclose(loss.mean(), log_loss(BITS, p), rtol=1e-5)


def test_binary_cross_entropy_of_many_outputs_is_a_mean_over_them():
    p = expit(LOGITS.astype(float))
    expected = -(ONE_HOT * np.log(p) + (1 - ONE_HOT) * np.log(1 - p)).mean(-1)
    check(make("binary_cross_entropy")(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal(gamma):
    p = softmax(LOGITS.astype(float), -1)[np.arange(12), LABELS]
    check(make("focal", focal_gamma=gamma)(LOGITS, LABELS), -((1 - p) ** gamma) * np.log(p))
    p = expit(np.where(BITS == 1, 1, -1) * LOGIT[:, 0].astype(float))
    check(make("focal", focal_gamma=gamma)(LOGIT, BITS), -((1 - p) ** gamma) * np.log(p))


def test_focal_with_smoothed_targets():
    log_p = log_softmax(LOGITS.astype(float), -1)
    targets = 0.8 * ONE_HOT + 0.2 / 5
    expected = -(targets * (1 - np.exp(log_p)) ** 2 * log_p).sum(-1)
    check(make("focal", label_smoothing=0.2)(LOGITS, LABELS), expected)
    # gamma 0 leaves the cross-entropy with the target 0.9 or 0.1.
    log_p, log_q = np.log(expit(LOGIT[:, 0])), np.log(expit(-LOGIT[:, 0]))
    target = 0.8 * BITS + 0.1
    loss = make("focal", label_smoothing=0.2, focal_gamma=0.0)(LOGIT, BITS)
    check(loss, -(target * log_p + (1 - target) * log_q))


def test_focal_of_one_output_with_smoothing_is_that_of_two_classes():
    """Smoothed targets .95, .95, .05; computed by hand in float64."""
    logits, labels = np.array([[2.0], [-1.0], [0.5]], np.float32), np.array([1, 1, 0])
    loss = make("focal", label_smoothing=0.1)(logits, labels)
    np.testing.assert_allclose(loss, [0.08422, 0.66791, 0.36192], atol=5e-6)
    p, target = expit(logits[:, 0].astype(float)), 0.9 * labels + 0.05
    expected = -target * (1 - p) ** 2 * np.log(p) - (1 - target) * p**2 * np.log(1 - p)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_mse():
    check(make("mse")(LOGITS, LABELS), ((softmax(LOGITS, -1) - ONE_HOT) ** 2).mean(-1))
    check(make("mse")(LOGIT, BITS), (expit(LOGIT[:, 0]) - BITS) ** 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize(
    "logits", [[[300.0, 0.0, -300.0]] * 3, [[300.0], [-300.0], [300.0], [-300.0]]]
)
def test_sure_networks_have_finite_focal_losses_and_gradients(logits, gamma):
    """Where 1 - p is 0 in float32, of which a power below one has an infinite derivative."""
    loss = make("focal", focal_gamma=gamma)
    labels = jnp.array([0, 1, 2] if len(logits) == 3 else [0, 0, 1, 1])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, labels).sum()))(
        jnp.array(logits)
    )
    assert np.isfinite(value) and value > 500.0  # the two wrong ones
    assert np.isfinite(gradient).all() and (gradient != 0.0).any()


def test_balanced_class_weights_are_scikit_learns():
    labels = RNG.permutation(np.repeat([0, 1, 3], [70, 25, 5]))
    weights = losses.compute_class_weights("balanced", np.bincount(labels, minlength=5), 0.5)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights[present], expected, rtol=1e-12)
    assert weights[2] == weights[4] == 0  # classes that do not occur


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_class_weights_are_inverse_to_the_effective_numbers(beta):
    """The effective number as a sum, Cui et al. 2019, equation 2."""
    counts = np.array([5000, 500, 0, 1])
    numbers = [sum(beta**i for i in range(n)) for n in counts[[0, 1, 3]]]
    weights = losses.compute_class_weights("effective", counts, beta)
    expected = 3 / np.array(numbers) / (1 / np.array(numbers)).sum()
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-9)
    assert weights[2] == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"name": "hinge"}, "loss.name='hinge'.*binary_cross_entropy"),
        ({"name": "cross_entropy", "label_smoothing": 1.0}, "loss.label_smoothing=1.0"),
        ({"name": "cross_entropy", "label_smoothing": -0.1}, "loss.label_smoothing=-0.1"),
        ({"name": "mse", "label_smoothing": 0.1}, "loss.label_smoothing=0.1"),
        ({"name": "focal", "focal_gamma": -1.0}, "loss.focal_gamma=-1.0"),
    ],
)
def test_bad_settings_are_named(settings, field):
    with pytest.raises(UserError, match=field):
        losses.make_loss(**settings)
