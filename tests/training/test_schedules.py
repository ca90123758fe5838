"""Schedules against the formulas of their papers, decisions against hand-made histories."""

import itertools
import math

import jax
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.training.config import OptimizerConfig, ScheduleConfig
from flaxcnn.training.schedules import SCHEDULES, make_schedule, plateau_scale, should_stop

STEPS, EPOCHS = 10, 8  # 80 updates


def make(schedule="cosine", learning_rate=0.4, **fields):
    config = OptimizerConfig(
        learning_rate=learning_rate, schedule=ScheduleConfig(schedule, **fields)
    )
    return make_schedule(config, STEPS, EPOCHS)


def rates(steps=None, **fields):
    """Learning rates at `steps` (all of the run), computed like a training step's: traced."""
    steps = np.arange(STEPS * EPOCHS) if steps is None else np.asarray(steps)
    schedule = make(**fields)
    return np.asarray(jax.jit(jax.vmap(lambda s: 1.0 * schedule(s)))(steps.astype(np.int32)))


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant(name):
    np.testing.assert_allclose(rates(schedule=name), np.full(80, 0.4), rtol=1e-6)


def test_step_counts_epochs_from_the_start_of_the_run():
    expected = np.repeat([0.4, 0.08, 0.016], [25, 30, 25])
    fields = {"schedule": "step", "boundaries": (2.5, 5.5, 100.0), "decay_rate": 0.2}
    np.testing.assert_allclose(rates(**fields), expected, rtol=1e-6)
    expected[:20] = 0.4 * np.arange(20) / 20
    np.testing.assert_allclose(rates(**fields, warmup_epochs=2.0), expected, rtol=1e-6)


def test_step_keeps_boundaries_that_fall_on_one_update():
    got = rates([29, 30], schedule="step", boundaries=(3.0, 3.01), decay_rate=0.5)
    np.testing.assert_allclose(got, [0.4, 0.1], rtol=1e-6)


def test_exponential():
    got = rates(schedule="exponential", decay_rate=0.5, decay_epochs=2.0)
    np.testing.assert_allclose(got, 0.4 * 0.5 ** (np.arange(80) / 20), rtol=1e-5)
    got = rates(schedule="exponential", decay_rate=0.5, final_fraction=0.3)
    np.testing.assert_allclose(got, np.maximum(0.4 * 0.5 ** (np.arange(80) / 10), 0.12), rtol=1e-5)


def test_cosine_after_warmup():
    got = rates([0, 5, 10, 45, 80], schedule="cosine", warmup_epochs=1.0, final_fraction=0.1)
    np.testing.assert_allclose(got, [0.0, 0.2, 0.4, (0.4 + 0.04) / 2, 0.04], rtol=1e-5)
    got = rates(schedule="cosine")
    expected = 0.2 * (1 + np.cos(math.pi * np.arange(80) / 80))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_linear():
    got = rates(schedule="linear", final_fraction=0.5)
    np.testing.assert_allclose(got, 0.4 - 0.2 * np.arange(80) / 80, rtol=1e-5)


def test_warmup_starts_where_it_is_told_to():
    """The triangle of Jordan 2024: 0.2 of the peak, the peak, 0.07 of it."""
    fields = {"schedule": "linear", "warmup_epochs": 2.0, "initial_fraction": 0.2}
    got = rates([0, 10, 20, 50, 80], final_fraction=0.07, **fields)
    np.testing.assert_allclose(got, [0.08, 0.24, 0.4, 0.214, 0.028], rtol=1e-5)


def test_polynomial():
    got = rates(schedule="polynomial", power=3.0, warmup_epochs=3.0)[30:]
    np.testing.assert_allclose(got, 0.4 * (1 - np.arange(50) / 50) ** 3, rtol=1e-4)


def test_one_cycle():
    """Up from 1/25 in 30 % of the steps and down to the end, each half a cosine."""

    def half_cosine(start, end, share):
        return end + (start - end) * (1 + np.cos(np.pi * share)) / 2

    expected = np.concatenate(
        [
            half_cosine(0.4 / 25, 0.4, np.arange(24) / 24),
            half_cosine(0.4, 0.4 * 0.01, np.arange(56) / 56),
        ]
    )
    got = rates(schedule="one_cycle", final_fraction=0.01)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert rates([80], schedule="one_cycle")[0] == 0.0


def test_warmup_ends_where_one_cycle_begins():
    got = rates([0, 5, 10, 31], schedule="one_cycle", warmup_epochs=1.0)
    np.testing.assert_allclose(got, [0.0, 0.008, 0.016, 0.4], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosin"}, "optimizer.schedule.name='cosin'.*cosine"),
        ({"learning_rate": -0.1}, "optimizer.learning_rate=-0.1"),
        ({"learning_rate": math.nan}, "optimizer.learning_rate=nan"),
        ({"final_fraction": 1.5}, "schedule.final_fraction=1.5"),
        (
            {"initial_fraction": 1.2, "warmup_epochs": 1.0},
            "schedule.initial_fraction=1.2: must be",
        ),
        ({"initial_fraction": 0.2}, "initial_fraction=0.2: must be 0 without warmup_epochs"),
        ({"warmup_epochs": -1.0}, "schedule.warmup_epochs=-1.0"),
        ({"warmup_epochs": 7.99}, "schedule.warmup_epochs=7.99.*epochs=8"),
        ({"schedule": "step"}, "schedule.boundaries"),
        ({"schedule": "step", "boundaries": (5.0, 2.0)}, "schedule.boundaries"),
        ({"schedule": "step", "boundaries": (2.0, 2.0)}, "schedule.boundaries"),
        ({"schedule": "step", "boundaries": (1.0,), "warmup_epochs": 1.0}, "schedule.boundaries"),
        ({"schedule": "step", "boundaries": (1.0,), "decay_rate": 10.0}, "schedule.decay_rate"),
        ({"schedule": "exponential", "decay_rate": 0.0}, "schedule.decay_rate"),
        ({"schedule": "exponential", "decay_epochs": 0.0}, "schedule.decay_epochs"),
        ({"schedule": "polynomial", "power": 0.0}, "schedule.power"),
        ({"schedule": "plateau", "patience": 0}, "schedule.patience"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("losses", "reductions"),
    [
        ([], 0),
        ([1.0, 0.9, 0.8], 0),
        ([1.0, 1.0], 0),
        ([1.0, 1.0, 1.0], 1),  # two epochs in a row without a lower loss
        ([1.0, 1.1, 0.9, 1.1, 0.8], 0),  # never two in a row
        ([1.0, 1.1, 1.1, 1.1, 1.1], 2),  # counted anew after each reduction
        ([1.0, 0.99995, 0.9999], 1),  # lower by no more than 1e-4
        ([1.0, 0.9998, 0.9996], 0),
        ([1.0, math.nan, math.nan, 0.5], 1),
        ([math.nan, math.nan], 1),
    ],
)
def test_plateau(losses, reductions):
    assert plateau_scale(losses, patience=2, factor=0.5) == 0.5**reductions


def test_plateau_depends_on_the_history_alone():
    losses = list(np.random.default_rng(0).random(60))
    scales = [plateau_scale(losses[:n], 3, 0.1) for n in range(61)]
    assert all(after in (before, before * 0.1) for before, after in itertools.pairwise(scales))
    assert scales[60] < 1e-5


@pytest.mark.parametrize(
    ("history", "higher_is_better", "stops"),
    [
        ([], True, False),
        ([0.9], True, False),
        ([0.9, 0.8, 0.8], True, False),
        ([0.9, 0.8, 0.8, 0.8], True, True),
        ([0.9, 0.9, 0.9, 0.9], True, True),  # equal is not better
        ([0.1, 0.2, 0.3, 0.4], True, False),
        ([0.1, 0.2, 0.3, 0.4], False, True),
        ([0.9, 0.1, 0.2, 0.3, 0.95], True, False),  # better just now
        ([0.9, math.nan, math.nan, math.nan], True, True),
        ([math.nan, 0.9, 0.8], True, False),
    ],
)
def test_early_stopping(history, higher_is_better, stops):
    assert should_stop(history, 3, higher_is_better) is stops


def test_no_patience_never_stops():
    assert not should_stop([0.9] + [0.1] * 50, 0, True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_uses_the_fields_that_are_listed_for_it(schedule):
    def some_rates(**changed):
        rate = make(schedule, **{"boundaries": (2.0,), "decay_rate": 0.5} | changed)
        return [float(rate(step)) for step in (25, 70)]

    others = {
        "boundaries": (3.0,),
        "decay_rate": 0.2,
        "decay_epochs": 2.0,
        "final_fraction": 0.6,
        "power": 3.0,
    }
    used = {name for name, value in others.items() if some_rates(**{name: value}) != some_rates()}
    if schedule == "plateau":  # by `plateau_scale`
        used |= {"patience", "decay_rate"}
    assert used == set(SCHEDULES[schedule])
