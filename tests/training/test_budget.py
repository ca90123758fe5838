"""A run that has to end before its session does; the clock is moved by hand."""

import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import budget
from flaxcnn.training.budget import Budget, parse_budget


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(budget, "time", clock := Clock())
    return clock


def calls_until_spent(budget, clock, seconds, saving=0.0):
    """How many calls of these `seconds` are made, the last one too."""
    for count, interval in enumerate(seconds, start=1):
        clock.now += interval
        if budget.is_spent(saving):
            return count
    return None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("80m", 4800), ("11h", 39600), ("1.5h", 5400)]
)
def test_times(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["80", "m", "80 m", "-5m", "1d", "0s", "1h30m", "nan s"])
def test_what_is_no_time_is_named(text):
    with pytest.raises(UserError, match=f"run.budget must be a time such as .* got {text!r}"):
        parse_budget(text)


def test_without_a_budget_nothing_ends(clock):
    assert calls_until_spent(Budget(""), clock, [1e9] * 3, 1e9) is None


def test_it_ends_while_another_call_and_a_save_would_still_fit(clock):
    """Of 100 s: calls of 10 s, a save of 8 s; what follows the last call must not reach 100."""
    count = calls_until_spent(Budget("100s"), clock, [10] * 10, saving=8)
    assert count == 8
    assert 1000 + 100 - clock.now > 10 + 8


def test_before_the_first_save_a_share_is_kept_for_it(clock):
    assert calls_until_spent(Budget("1000s"), clock, [1] * 1000) < 950


def test_a_longer_call_is_expected_again(clock):
    short = calls_until_spent(Budget("200s"), clock, [1] * 200, saving=1)
    longer = calls_until_spent(Budget("200s"), clock, [1, 40, *[1] * 200], saving=1)
    assert longer + 39 < short - 40  # in seconds


@pytest.mark.parametrize(("epochs", "kept"), [(0, True), (1, True), (2, False)])
def test_compiling_is_kept_in_reserve_until_each_program_has_run(clock, epochs, kept):
    """60 s of compiling in the first call of epochs of 5 calls of 1 s; then 30 s are left."""
    begun = Budget("300s")
    clock.now += 59
    for epoch in range(epochs + 1):
        for call in range(5 if epoch < epochs else 1):
            clock.now += 1
            assert not begun.is_spent(1.0, epoch_ended=call == 4)
    clock.now = 1000 + 300 - 30
    begun.begin()
    assert begun.is_spent(1.0) == kept


def test_it_counts_from_the_start_of_the_command(clock):
    assert not Budget("100s").is_spent(1.0)
    assert Budget("100s", started=clock.now - 99).is_spent(1.0)


def test_loading_is_no_measure_of_a_call(clock):
    begun = Budget("100s")
    clock.now += 50
    begun.begin()
    clock.now += 1
    assert not begun.is_spent(1.0)
