import pickle

import jax
import numpy as np
import pytest

from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.data.imbalance import Draws, make_draws, subsample
from flaxcnn.data.plans import TrainPlan
from flaxcnn.data.splits import ArraySplit
from flaxcnn.errors import UserError

CLASSES = ("airplane", "bird", "cat", "dog")
COUNTS = np.array([101, 40, 7, 0])  # no class of the split needs to occur
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS)).astype(np.int32)
# Every image tells its number.
SPLIT = ArraySplit(np.arange(148, dtype=np.uint8).reshape(-1, 1, 1, 1), LABELS)


def draws_of(sampler="natural", **kwargs):
    return make_draws(LABELS, CLASSES, sampler=sampler, **kwargs)


def kept(shares, seed=0):
    images, labels = subsample(SPLIT, CLASSES, shares, seed).load(slice(None))
    numbers = images.ravel()
    np.testing.assert_array_equal(labels, LABELS[numbers])
    assert (np.diff(numbers.astype(int)) > 0).all()  # each once, in the split's order
    return set(numbers.tolist())


def test_a_share_of_a_class_is_kept_and_all_of_the_others():
    left = kept({"airplane": 0.5, "bird": 0.3})
    np.testing.assert_array_equal(np.bincount(LABELS[sorted(left)]), [51, 12, 7])
    assert left == kept({"bird": 0.3, "airplane": 0.5})
    assert left != kept({"airplane": 0.5, "bird": 0.3}, seed=1)
    assert kept({}) == kept({"cat": 1.0}) == set(range(148))


def test_less_than_one_image_is_one_and_a_class_without_images_stays_without():
    np.testing.assert_array_equal(
        np.bincount(LABELS[sorted(kept({"cat": 1e-6, "dog": 0.5}))], minlength=4), [101, 40, 1, 0]
    )


def test_a_smaller_share_is_part_of_a_larger_one():
    assert kept({"airplane": 0.1}) < kept({"airplane": 0.2}) < kept({"airplane": 0.9})


def test_unknown_classes_are_told_with_the_known_ones():
    line = r"there is no class 'plane'; the classes are airplane, bird, cat, dog$"
    with pytest.raises(UserError, match=rf"^data\.balance\.subsample: {line}"):
        subsample(SPLIT, CLASSES, {"plane": 0.5}, 0)
    with pytest.raises(UserError, match=rf"^data\.balance\.expand: {line}"):
        draws_of(expand={"plane": 9})
    with pytest.raises(UserError, match=r"are 0, 1, .* 19, \.\.\.$"):
        make_draws(LABELS, [str(i) for i in range(1000)], expand={"x": 1})


def test_natural_is_every_image_once_and_expand_adds_copies():
    np.testing.assert_array_equal(draws_of().epoch(0, 3), np.arange(148))
    expanded = draws_of(expand={"cat": 9, "bird": 1})
    shown = np.bincount(expanded.epoch(0, 3))
    np.testing.assert_array_equal(shown, np.array([1, 2, 10])[LABELS])
    assert len(expanded) == 101 + 2 * 40 + 10 * 7


def per_class(draws, epoch=0):
    return np.bincount(LABELS[draws.epoch(0, epoch)], minlength=4)


def test_balanced_shows_each_class_that_occurs_equally_often():
    np.testing.assert_array_equal(sorted(per_class(draws_of("balanced"))), [0, 49, 49, 50])


def test_sqrt_shows_a_class_in_proportion_to_the_root_of_its_images():
    quotas = 148 * np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    shown = per_class(draws_of("sqrt"))
    assert shown.sum() == 148
    np.testing.assert_allclose(shown, quotas, atol=1)


@pytest.mark.parametrize("threshold", [0.001, 0.3, 1.0])
def test_repeat_factor_shows_an_image_as_often_as_the_formula_on_average(threshold):
    draws = draws_of("repeat_factor", repeat_threshold=threshold)
    epochs = 300
    shown = sum(np.bincount(draws.epoch(0, epoch), minlength=148) for epoch in range(epochs))
    factors = np.maximum(1, np.sqrt(threshold / (COUNTS[:3] / 148)))
    # Half a draw of a class's images is rounded away; the rest is chance.
    np.testing.assert_allclose(
        [shown[LABELS == label].mean() / epochs for label in range(3)],
        factors,
        atol=0.5 / 7,
    )
    assert abs(shown / epochs - factors[LABELS]).max() < 0.5 / 7 + 4 * 0.5 / np.sqrt(epochs)
    np.testing.assert_array_equal(per_class(draws)[:3], np.round(COUNTS[:3] * factors))


@pytest.mark.parametrize("sampler", ["balanced", "sqrt", "repeat_factor"])
def test_images_of_a_class_take_turns(sampler):
    draws = draws_of(sampler, repeat_threshold=0.5)
    shown = [np.bincount(draws.epoch(0, epoch), minlength=148) for epoch in range(100)]
    for label in range(3):
        ours = np.stack(shown)[:, LABELS == label]
        assert (ours.max(1) - ours.min(1) <= 1).all()  # within an epoch
        assert (ours.max(0) > ours.min(0)).all() or (ours == ours[0, 0]).all()  # over the epochs
    np.testing.assert_array_equal(
        draws.epoch(5, 7), draws_of(sampler, repeat_threshold=0.5).epoch(5, 7)
    )
    assert not np.array_equal(draws.epoch(5, 7), draws.epoch(6, 7))


def plan_of(draws, steps_per_call=4):
    return TrainPlan(draws, 10, steps_per_call, epochs=3, seed=0)


def steps_of(plan):
    return np.concatenate(list(plan))


def test_natural_draws_leave_the_order_as_it_is():
    once = Draws(np.zeros(148, np.int32), np.array([148]))
    np.testing.assert_array_equal(steps_of(plan_of(draws_of())), steps_of(plan_of(once)))


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [
        ({"expand": {"cat": 9}}, 21),
        ({"sampler": "balanced"}, 14),
        ({"sampler": "repeat_factor", "repeat_threshold": 0.5}, 17),
    ],
)
def test_plans_shuffle_what_is_drawn_and_go_on_from_any_call(kwargs, steps):
    draws = draws_of(**kwargs)
    plan = plan_of(draws)
    assert plan.steps_per_epoch == steps == len(draws) // 10
    whole = steps_of(plan)
    assert whole.shape == (3 * steps, 10) and whole.dtype == np.int32
    np.testing.assert_array_equal(steps_of(plan_of(draws_of(**kwargs), steps_per_call=50)), whole)
    copy = pickle.loads(pickle.dumps(plan))  # as a worker process has it
    np.testing.assert_array_equal(steps_of(copy), whole)
    for epoch, shown in enumerate(np.split(whole, 3)):
        left = np.bincount(draws.epoch(0, epoch), minlength=148)
        left -= np.bincount(shown.ravel(), minlength=148)
        assert left.min() >= 0 and left.sum() == len(draws) % 10
        assert (np.diff(shown.ravel()) < 0).sum() > 4 * steps  # in no order
    resident, streaming = Resident(SPLIT), Streaming(SPLIT, 0)
    take = jax.jit(jax.vmap(resident.batch, in_axes=(None, 0)))
    for start in (0, 4):
        fed = list(streaming.feed(plan, start))
        assert len(fed) == len(plan) - start
        for call, (indices, item) in enumerate(zip(resident.feed(plan, start), fed, strict=True)):
            np.testing.assert_array_equal(indices, plan[start + call])
            for ours, theirs in zip(take(resident.arrays, indices), item, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_batch_larger_than_an_epoch():
    with pytest.raises(UserError, match=r"data\.batch_size is 212, more than the 211 images"):
        TrainPlan(draws_of(expand={"cat": 9}), 212, 1, 1, 0)
