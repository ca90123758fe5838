import numpy as np
import pytest
import scipy.stats

from flaxcnn.study.bootstrap import compare, paired_interval


@pytest.mark.parametrize("shared", [True, False])
def test_with_one_seed_it_is_scipys(shared):
    of_example = np.random.default_rng(3).normal(0.1, 1, 400)
    expected = scipy.stats.bootstrap(
        (of_example,), np.mean, method="percentile", n_resamples=2000, rng=1
    ).confidence_interval
    assert paired_interval([of_example], shared=shared) == pytest.approx(expected, abs=0.01)


def test_seeds_and_examples_are_both_drawn():
    # Of two seeds the mean is either's, or the middle, with probabilities 1/4, 1/4, 1/2.
    seeds = [np.full(50, -1.0), np.full(50, 3.0)]
    assert paired_interval(seeds, shared=True) == (-1, 3)
    # What an example does to all seeds alike is not averaged away by more of them; within each seed
    # it is (the standard error is that of 4 N examples).
    of_example = np.random.default_rng(0).normal(0, 1, 400)
    low, high = paired_interval([of_example] * 4, shared=True)
    assert high - low == pytest.approx(2 * 1.96 * of_example.std() / 20, rel=0.1)
    low, high = paired_interval([of_example] * 4, shared=False)
    assert high - low == pytest.approx(2 * 1.96 * of_example.std() / 40, rel=0.1)


class Accuracy:
    monitor = type("Metric", (), {"name": "accuracy"})

    def labels(self, arrays):
        return arrays["true"], arrays["label"]


def test_cases_are_compared_by_example():
    true, index = np.zeros(100, int), np.arange(100)

    def run(wrong, loss=0.0):
        label = (index < wrong).astype(int)
        return {"true": true, "label": label, "loss": np.full(100, loss), "index": index}

    found = compare(Accuracy(), [run(10), run(10)], [run(4), run(6)])
    assert found["of"] == "accuracy" and found["mean"] == pytest.approx(0.05)
    assert 0 <= found["low"] < 0.05 < found["high"] < 0.12
    other = run(4) | {"index": index[::-1]}
    assert compare(Accuracy(), [run(10)], [other]) == {}
    Regression = type("Regression", (Accuracy,), {"labels": lambda self, arrays: None})
    found = compare(Regression(), [run(0, 2.0)], [run(0, 1.5)])
    assert found == {"of": "loss", "mean": -0.5, "low": -0.5, "high": -0.5}
