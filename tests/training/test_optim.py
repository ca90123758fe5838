"""Update rules against their formulas in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.training.config import ClipConfig, LookaheadConfig, OptimizerConfig
from flaxcnn.training.optim import kernel_mask, make_lookahead, make_optimizer

NAMES = (
    "sgd",
    "momentum",
    "nesterov",
    "rmsprop",
    "rmsprop_tf",
    "adagrad",
    "adam",
    "adamw",
    "lamb",
    "lars",
    "lion",
    "muon",
)
RATE = 0.1


def make_tree(seed):
    """A convolution, a norm and a dense layer, with numbers everywhere."""
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)), "bias": rng.normal(size=4)},
        "bn": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)},
        "dense": {"kernel": rng.normal(size=(8, 5)), "bias": rng.normal(size=5)},
    }


PARAMS, A, B = make_tree(0), make_tree(1), make_tree(2)  # parameters and two gradients


def to_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def updates(gradients, name="sgd", kwargs=None, **fields):
    """The updates after these gradients, each at PARAMS."""
    config = OptimizerConfig(name=name, kwargs=ConfigDict(kwargs or {}), **fields)
    tx = make_optimizer(config, optax.constant_schedule(RATE))
    params = to_jax(PARAMS)
    state, result = tx.init(params), []
    step = jax.jit(tx.update) if len(gradients) > 1 else tx.update
    for gradient in gradients:
        update, state = step(to_jax(gradient), state, params)
        result.append(jax.tree.map(np.asarray, update))
    return result


@functools.cache
def plain_updates(name):
    return updates([A, B], name)


def check(got, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, expected)


def two_steps(name, a, b, p):
    """The first two updates by the papers' formulas: gradients a and b, parameters p."""
    match name:
        case "sgd":
            return -RATE * a, -RATE * b
        case "momentum":
            return -RATE * a, -RATE * (b + 0.9 * a)
        case "nesterov":
            return -RATE * 1.9 * a, -RATE * (b + 0.9 * (b + 0.9 * a))
        case "rmsprop":
            v = 0.1 * a**2
            w = 0.9 * v + 0.1 * b**2
            return -RATE * a / (np.sqrt(v) + 1e-8), -RATE * b / (np.sqrt(w) + 1e-8)
        case "rmsprop_tf":
            v = 0.9 + 0.1 * a**2
            w = 0.9 * v + 0.1 * b**2
            first, second = RATE * a / np.sqrt(v + 1e-3), RATE * b / np.sqrt(w + 1e-3)
            return -first, -(second + 0.9 * first)
        case "adagrad":
            v = 0.1 + a**2
            return -RATE * a / np.sqrt(v + 1e-7), -RATE * b / np.sqrt(v + b**2 + 1e-7)
        case "adam" | "adamw":
            m, v = 0.1 * a, 0.001 * a**2
            n, w = 0.9 * m + 0.1 * b, 0.999 * v + 0.001 * b**2
            second = n / (1 - 0.9**2) / (np.sqrt(w / (1 - 0.999**2)) + 1e-8)
            return -RATE * a / (np.abs(a) + 1e-8), -RATE * second
        case "lion":
            return -RATE * np.sign(a), -RATE * np.sign(0.9 * 0.01 * a + 0.1 * b)
        case "lars":
            first = RATE * 0.001 * np.linalg.norm(p) / np.linalg.norm(a) * a
            second = RATE * 0.001 * np.linalg.norm(p) / np.linalg.norm(b) * b
            return -first, -(second + 0.9 * first)
        case "lamb":
            first, second = (-step / RATE for step in two_steps("adam", a, b, p))
            scaled = [RATE * np.linalg.norm(p) / np.linalg.norm(u) * u for u in (first, second)]
            return -scaled[0], -scaled[1]
    raise AssertionError(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon"])
def test_first_two_updates_follow_the_formula(name):
    rtol = 1e-3 if name == "lamb" else 1e-4  # whose epsilon is 1e-6 where adam has 1e-8
    first, second = plain_updates(name)
    for layer in ("conv", "dense"):
        expected = two_steps(name, *(tree[layer]["kernel"] for tree in (A, B, PARAMS)))
        check(first[layer]["kernel"], expected[0], rtol)
        check(second[layer]["kernel"], expected[1], rtol)


def test_lars_trusts_biases_and_norms_at_the_plain_rate():
    (update,) = updates([A], "lars")
    check(update["bn"], jax.tree.map(lambda g: -RATE * g, A["bn"]))
    check(update["conv"]["bias"], -RATE * A["conv"]["bias"])


def orthogonalize(matrix):
    """Five Newton-Schulz steps with Jordan's coefficients, as in his published notes."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_sees_a_convolution_as_a_matrix_of_outputs_by_inputs():
    (update,) = updates([A], "muon")
    # [h, w, in, out] -> (out, h w in), which has fewer rows than columns. The momentum of the
    # first step is the gradient times a number, which normalisation removes.
    matrix = orthogonalize(A["conv"]["kernel"].reshape(18, 4).T)
    check(update["conv"]["kernel"], -RATE * matrix.T.reshape(3, 3, 2, 4), rtol=1e-2)
    dense = orthogonalize(A["dense"]["kernel"].T)
    check(update["dense"]["kernel"], -RATE * dense.T, rtol=1e-2)


def test_muon_leaves_biases_and_norms_to_adam():
    (update,) = updates([A], "muon", weight_decay=0.1)
    for layer, leaf in (("conv", "bias"), ("bn", "scale"), ("bn", "bias"), ("dense", "bias")):
        # Nesterov's form: the first step is (1.9 / 1.9) of the sign up to bias correction.
        g = A[layer][leaf]
        mean = (0.9 * 0.1 * g / (1 - 0.9**2) + 0.1 * g / (1 - 0.9)) / np.abs(g)
        check(update[layer][leaf], -RATE * mean)


@pytest.mark.parametrize("name", ["lars", "muon"])  # the others' every update is known above
def test_a_quadratic_decreases(name):
    target = to_jax(A)

    def loss(params):
        squares = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return sum(jax.tree.leaves(squares))

    rate = {"muon": 0.1, "lars": 0.02}[name]
    kwargs = ConfigDict({"trust_coefficient": 1.0} if name == "lars" else {})
    config = OptimizerConfig(name=name, kwargs=kwargs)
    tx = make_optimizer(config, optax.constant_schedule(rate))

    def step(carry, _):
        params, state = carry
        update, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, update), state), None

    params = to_jax(PARAMS)
    final = jax.jit(lambda c: jax.lax.scan(step, c, length=60)[0][0])((params, tx.init(params)))
    assert loss(final) < 0.6 * loss(params)


def test_kernels_are_known_by_their_name():
    flags = kernel_mask(PARAMS)
    assert flags == {
        "conv": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
        "dense": {"kernel": True, "bias": False},
    }


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_moves_kernels_only(name):
    plain, decayed = plain_updates(name)[1], updates([A, B], name, weight_decay=0.01)[1]
    for layer, leaves in plain.items():
        for leaf, update in leaves.items():
            change = np.abs(update - decayed[layer][leaf]).max()
            assert change > 1e-6 if leaf == "kernel" else change == 0, (layer, leaf)
    if name in ("adamw", "lion", "muon"):
        for layer in ("conv", "dense"):
            moved = decayed[layer]["kernel"] - plain[layer]["kernel"]
            check(moved, -RATE * 0.01 * PARAMS[layer]["kernel"], rtol=1e-2)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "adam", "rmsprop_tf"])
def test_coupled_decay_is_part_of_the_gradient(name):
    """Two steps: momentum carries the decay of the first step into the second."""
    got = updates([A, B], name, weight_decay=0.3)
    p = PARAMS["conv"]["kernel"]
    a, b = A["conv"]["kernel"] + 0.3 * p, B["conv"]["kernel"] + 0.3 * p
    for update, expected in zip(got, two_steps(name, a, b, p), strict=True):
        check(update["conv"]["kernel"], expected, rtol=1e-4)


def test_lars_decays_before_its_trust_ratio():
    (update,) = updates([A], "lars", weight_decay=0.3)
    p = PARAMS["conv"]["kernel"]
    whole = A["conv"]["kernel"] + 0.3 * p
    expected = -RATE * 0.001 * np.linalg.norm(p) / np.linalg.norm(whole) * whole
    check(update["conv"]["kernel"], expected, rtol=1e-4)


def global_norm(tree):
    return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))


def test_clipping_by_value():
    (update,) = updates([A], clip=ClipConfig(value=0.5))
    check(update, jax.tree.map(lambda g: -RATE * np.clip(g, -0.5, 0.5), A))


def test_clipping_by_global_norm():
    (update,) = updates([A], clip=ClipConfig(norm=2.0))
    check(update, jax.tree.map(lambda g: -RATE * g * 2.0 / global_norm(A), A))
    small = jax.tree.map(lambda g: g / 100, A)
    (update,) = updates([small], clip=ClipConfig(norm=2.0))
    check(update, jax.tree.map(lambda g: -RATE * g, small))


def test_adaptive_clipping_compares_every_output_with_its_weights():
    gradient = make_tree(1)
    gradient["conv"]["kernel"][..., 0] /= 1000  # small enough to stay
    (update,) = updates([gradient], clip=ClipConfig(adaptive=0.1))
    for layer, axes in (("conv", (0, 1, 2)), ("dense", 0)):
        g, p = gradient[layer]["kernel"], PARAMS[layer]["kernel"]
        g_norm = np.sqrt((g**2).sum(axis=axes, keepdims=True))
        p_norm = np.maximum(np.sqrt((p**2).sum(axis=axes, keepdims=True)), 1e-3)
        check(update[layer]["kernel"], -RATE * g * np.minimum(1.0, 0.1 * p_norm / g_norm))


def test_clipping_is_by_value_then_norm_then_adaptive_and_before_decay():
    (update,) = updates([A], clip=ClipConfig(1.0, 0.5, 0.01), weight_decay=0.3)
    clipped = jax.tree.map(lambda g: np.clip(g, -0.5, 0.5), A)
    g = clipped["dense"]["kernel"] / global_norm(clipped)
    p = PARAMS["dense"]["kernel"]
    ratio = 0.01 * np.linalg.norm(p, axis=0) / np.linalg.norm(g, axis=0)
    assert (ratio < 1).all()
    check(update["dense"]["kernel"], -RATE * (g * ratio[None] + 0.3 * p))


def test_arguments_reach_optax():
    _, update = updates([A, B], "nesterov", kwargs={"momentum": 0.5})
    expected = jax.tree.map(lambda a, b: -RATE * (b + 0.5 * (b + 0.5 * a)), A, B)
    check(update, expected)


def test_whole_numbers_are_arguments_too():
    got = updates([A, B], "momentum", kwargs={"momentum": 0})
    for update, gradient in zip(got, (A, B), strict=True):
        check(update, jax.tree.map(lambda g: -RATE * g, gradient))


def test_the_schedule_is_followed():
    tx = make_optimizer(OptimizerConfig(name="sgd"), lambda step: 1.0 + step)
    state = tx.init({"kernel": jnp.ones(2)})
    rates = []
    for _ in range(3):
        update, state = tx.update({"kernel": jnp.ones(2)}, state, {"kernel": jnp.ones(2)})
        rates.append(float(-update["kernel"][0]))
    assert rates == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_learn_at_rates_of_their_own(name):
    rates = {"*bias": 64, "b*/bias": 0.5, "dense/kernel": 0}
    plain, scaled = plain_updates(name)[1], updates([A, B], name, rates=ConfigDict(rates))[1]
    factors = {"conv/bias": 64, "bn/bias": 32, "dense/bias": 64, "dense/kernel": 0}
    for layer, leaves in plain.items():
        for leaf, update in leaves.items():
            factor = factors.get(f"{layer}/{leaf}", 1)
            np.testing.assert_allclose(scaled[layer][leaf], factor * update, rtol=1e-6)


def test_a_rate_of_no_parameter_is_refused():
    with pytest.raises(
        UserError, match="rates: no trained parameter is called fc/.*; .* like bn/bias, bn"
    ):
        updates([A], rates=ConfigDict({"fc/*": 2.0, "bn/*": 2.0}))


@pytest.mark.parametrize("steps", [6, 8])
def test_lookahead_goes_back_to_the_slow_copy(steps):
    every, decay = 3, 0.9
    config = OptimizerConfig(lookahead=LookaheadConfig(every, decay))
    lookahead = make_lookahead(config, steps)
    assert lookahead is not None
    fast = slow = to_jax(PARAMS)
    expected = PARAMS["conv"]["kernel"]
    expected_slow = expected
    lookahead = jax.jit(lookahead)
    for step in range(1, steps + 1):
        change = make_tree(step)
        fast = jax.tree.map(jnp.add, fast, to_jax(change))
        fast, slow = lookahead(jnp.int32(step), fast, slow)
        expected = expected + change["conv"]["kernel"]
        if step % every == 0 or step == steps:
            kept = decay**every * (step / steps) ** 3
            expected = expected_slow = kept * expected_slow + (1 - kept) * expected
        check(fast["conv"]["kernel"], expected)
        check(slow["conv"]["kernel"], expected_slow)


def test_lookahead_leaves_the_bits_of_what_does_not_change():
    lookahead = make_lookahead(OptimizerConfig(lookahead=LookaheadConfig(1)), 7)
    assert lookahead is not None
    start = fast = slow = to_jax(PARAMS)
    for step in range(1, 8):
        fast, slow = jax.jit(lookahead)(jnp.int32(step), fast, slow)
    jax.tree.map(np.testing.assert_array_equal, (fast, slow), (start, start))


def test_no_lookahead_unless_it_is_asked_for():
    assert make_lookahead(OptimizerConfig(), 10) is None


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_lookahead_decay_out_of_range_is_named(decay):
    with pytest.raises(UserError, match=f"optimizer.lookahead.decay={decay}: must be in 0..1"):
        make_lookahead(OptimizerConfig(lookahead=LookaheadConfig(decay=decay)), 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamm"}, "optimizer.name='adamm'.*adamw"),
        ({"weight_decay": -1e-4}, "optimizer.weight_decay=-0.0001"),
        ({"clip": ClipConfig(norm=-1.0)}, "optimizer.clip.norm=-1.0"),
        ({"clip": ClipConfig(value=-1.0)}, "optimizer.clip.value=-1.0"),
        ({"clip": ClipConfig(adaptive=float("nan"))}, "optimizer.clip.adaptive=nan"),
        ({"rates": ConfigDict({"a": -1})}, "optimizer.rates: a must have a factor >= 0, got -1"),
        ({"rates": ConfigDict({"a": "2"})}, "optimizer.rates: a must have a factor >= 0, got '2'"),
        ({"name": "adam", "kwargs": {"beta1": 0.5}}, "optimizer.kwargs: adam has no 'beta1'.* b1"),
        ({"name": "adamw", "kwargs": {"weight_decay": 0.1}}, "optimizer.kwargs.*'weight_decay'"),
        ({"name": "adamw", "kwargs": {"mask": True}}, "optimizer.kwargs.*'mask'"),
        ({"name": "sgd", "kwargs": {"learning_rate": 0.1}}, "optimizer.kwargs.*'learning_rate'"),
        ({"name": "adam", "kwargs": {"b1": "0.5"}}, "optimizer.kwargs: b1='0.5' is no float"),
        ({"name": "momentum", "kwargs": {"nesterov": 1}}, "optimizer.kwargs: nesterov=1.* bool"),
        ({"name": "momentum", "kwargs": {"momentum": True}}, "kwargs: momentum=True.* float"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(OptimizerConfig(**fields), optax.constant_schedule(RATE))
