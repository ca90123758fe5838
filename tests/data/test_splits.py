import numpy as np
import pytest

from flaxcnn.data.splits import (
    ArraySplit,
    LazySplit,
    Records,
    hold_out,
    load_records,
    stream_records,
)
from flaxcnn.errors import UserError


class NumberedRecords(Records):
    """Image i is filled with i; those in `damaged` cannot be read."""

    def __init__(self, count, damaged=()):
        self.count, self.damaged, self.decoded = count, damaged, 0

    def __len__(self):
        return self.count

    def read(self, indices):
        for i in indices:
            self.decoded += 1
            image = np.full((2, 3, 1), i % 256, np.uint8)
            yield (UserError(f"image {i} is damaged") if i in self.damaged else image), i % 10

    def labels(self):
        return np.arange(self.count, dtype=np.int32) % 10


def load(records):
    return load_records(records, (2, 3, 1), title="x")


@pytest.mark.parametrize("kind", [ArraySplit, LazySplit])
def test_split_is_decoded_at_once_or_when_it_is_loaded(kind):
    records = NumberedRecords(1000)
    split = load(records)[0] if kind is ArraySplit else stream_records(records, replace=False)
    assert type(split) is kind and records.decoded == (1000 if kind is ArraySplit else 0)
    assert split.strata.tolist() == [i % 10 for i in range(1000)]
    images, labels = split.load(np.array([999, 3, 3, 258]))
    assert images.shape == (4, 2, 3, 1) and images.dtype == np.uint8
    assert images[:, 1, 2, 0].tolist() == [999 % 256, 3, 3, 2]
    assert labels.tolist() == [9, 3, 3, 8] and labels.dtype == np.int32
    assert len(split) == 1000


def test_images_that_cannot_be_read_are_left_out_and_named():
    split, bad = load(NumberedRecords(600, damaged={0, 5, 599}))
    assert {i: str(error) for i, error in bad.items()} == {
        i: f"image {i} is damaged" for i in (0, 5, 599)
    }
    images, labels = split.load(np.arange(597))
    assert images[:2, 0, 0, 0].tolist() == [1, 2] and labels[-1] == 598 % 10
    assert len(split) == 597


def test_nothing_may_be_left():
    split, bad = load(NumberedRecords(3, damaged={0, 1, 2}))
    assert len(split) == 0 and list(bad) == [0, 1, 2]


def test_damaged_image_of_a_streamed_split_is_an_error_when_it_is_loaded():
    split = stream_records(NumberedRecords(10, damaged={4}), replace=False)
    assert split.load(np.array([1, 3]))[1].tolist() == [1, 3]
    with pytest.raises(UserError, match="image 4 is damaged"):
        split.load(np.array([1, 4]))


def test_next_image_that_can_be_read_stands_in_for_a_damaged_one(capsys):
    whole = stream_records(NumberedRecords(40, damaged={5, 6, 7, 38}), replace=True)
    split = whole.subset(np.array([38, 2, 5, 7, 9, 30]))  # what is not in it never stands in
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 2, 0, 3, 3, 1]):
        images, labels = split.load(np.array(order))
        expected = [{38: 2, 5: 9, 7: 9}.get(i, i) for i in split.indices[order]]
        assert images[:, 0, 0, 0].tolist() == expected
        assert labels.tolist() == [value % 10 for value in expected]
    assert whole.load(np.array([38]))[0][0, 0, 0, 0] == 39
    after_the_last = split.subset(np.array([1, 4, 3]))
    assert after_the_last.load(np.array([2]))[0][0, 0, 0, 0] == 2
    # Each is named once, whichever part of the split it was found in.
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == [f"skipped: image {i} is damaged" for i in (38, 5, 7)]
    assert split.replaced is whole.replaced and sorted(whole.replaced) == [5, 7, 38]


def test_a_split_of_damaged_images_alone_is_an_error():
    split = stream_records(NumberedRecords(5, damaged=range(5)), replace=True)
    with pytest.raises(UserError, match="5 images in a row cannot be read: image 3 is damaged"):
        split.load(np.array([3]))


@pytest.mark.parametrize("kind", [ArraySplit, LazySplit])
def test_subset_of_a_subset(kind):
    records = NumberedRecords(100)
    split = load(records)[0] if kind is ArraySplit else stream_records(records, replace=False)
    subset = split.subset(np.arange(10, 90)).subset(np.array([5, 0]))
    images, labels = subset.load(np.array([0, 1]))
    assert images[:, 0, 0, 0].tolist() == [15, 10] and labels.tolist() == [5, 0]
    assert subset.strata.tolist() == [5, 0] and len(subset) == 2


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.5, 0.9])
def test_hold_out_is_disjoint_exhaustive_sorted_and_stratified(fraction):
    labels = np.random.default_rng(0).choice(5, 1437, p=[0.6, 0.2, 0.1, 0.09, 0.01])
    kept, held = hold_out(labels, fraction, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(1437))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    assert abs(len(held) - 1437 * fraction) <= 0.5
    for label in range(5):
        of_class = (labels == label).sum() * fraction
        assert abs((labels[held] == label).sum() - of_class) <= 1


def test_small_classes_are_not_rounded_away():
    labels = np.repeat(np.arange(40), 4)  # a tenth of 4 rounds to 0 in every single class
    _, held = hold_out(labels, 0.1, seed=0)
    assert len(held) == 16 and np.bincount(labels[held]).max() == 1


def test_no_class_is_taken_out_of_train():
    labels = np.repeat([0, 1, 2], [3, 1, 30])  # by place, the one of class 1 would be the first
    held = [np.bincount(labels[hold_out(labels, 0.15, seed)[1]], minlength=3) for seed in range(60)]
    assert {tuple(of_seed) for of_seed in held} == {(0, 0, 5), (1, 0, 4)}  # 33 * 0.15 = 4.95
    assert 15 < np.sum(held, axis=0)[0] < 39  # 60 seeds * 3 images * 0.15 = 27, deviation 3.9
    for fraction in (0.5, 0.9, 0.999):
        assert set(labels[hold_out(labels, fraction, 0)[0]]) == {0, 1, 2}
    kept, held = hold_out(np.arange(9), 0.5, 0)
    assert len(kept) == 9 and len(held) == 0


def test_which_small_classes_hold_out_depends_on_the_seed_and_not_on_their_place():
    labels = np.repeat(np.arange(40), 4)
    held = [np.bincount(labels[hold_out(labels, 0.1, s)[1]], minlength=40) for s in range(200)]
    times = np.sum(held, axis=0)
    # Each class in 0.4 of the seeds: 80 of 200, with a deviation of 7.
    assert times.min() > 80 - 5 * 7 and times.max() < 80 + 5 * 7 and times.sum() == 200 * 16
    assert len({tuple(of_seed) for of_seed in held}) == 200  # neighbours are independent


def test_splits_of_earlier_runs_are_found_again():
    labels = np.repeat([0, 1, 2], [3, 1, 30])
    kept, held = hold_out(labels, 0.15, 0, by_place=True)
    # As version ee78d20 held out.
    assert held.tolist() == [3, 9, 16, 27, 30] and sorted([*kept, *held]) == list(range(34))


def test_hold_out_depends_on_the_seed_alone():
    labels = np.arange(200) % 4
    first, again = hold_out(labels, 0.2, seed=1), hold_out(labels, 0.2, seed=1)
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], hold_out(labels, 0.2, seed=2)[1])
    # About a fifth of one seed's held-out images is in another's: they are independent.
    shared = [len(np.intersect1d(first[1], hold_out(labels, 0.2, seed=s)[1])) for s in range(2, 42)]
    assert 6 < np.mean(shared) < 10
