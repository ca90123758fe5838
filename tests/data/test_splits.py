import numpy as np
import pytest

from flaxcnn.data.splits import ArraySplit, LazySplit, hold_out, load_records
from flaxcnn.errors import UserError


class NumberedRecords:
    """Image i is filled with i; those in `damaged` cannot be read."""

    def __init__(self, count, damaged=()):
        self.count, self.damaged = count, damaged

    def __len__(self):
        return self.count

    def read(self, indices):
        for i in indices:
            image = np.full((2, 3, 1), i % 256, np.uint8)
            yield (UserError(f"image {i} is damaged") if i in self.damaged else image), i % 10


def load(records, limit=2**20):
    return load_records(records, (2, 3, 1), title="x", resident_limit=limit)


@pytest.mark.parametrize("limit", [6 * 1000, 6 * 1000 - 1])
def test_split_is_resident_up_to_the_limit(limit):
    split, bad = load(NumberedRecords(1000), limit)
    assert type(split) is (ArraySplit if limit == 6000 else LazySplit) and bad == {}
    images, labels = split.load(np.array([999, 3, 3, 258]))
    assert images.shape == (4, 2, 3, 1) and images.dtype == np.uint8
    assert images[:, 1, 2, 0].tolist() == [999 % 256, 3, 3, 2]
    assert labels.tolist() == [9, 3, 3, 8] and labels.dtype == np.int32
    assert len(split) == 1000


@pytest.mark.parametrize("limit", [2**20, 0])
def test_images_that_cannot_be_read_are_left_out_and_named(limit):
    split, bad = load(NumberedRecords(600, damaged={0, 5, 599}), limit)
    assert {i: str(error) for i, error in bad.items()} == {
        i: f"image {i} is damaged" for i in (0, 5, 599)
    }
    images, labels = split.load(np.arange(597))
    assert images[:2, 0, 0, 0].tolist() == [1, 2] and labels[-1] == 598 % 10
    assert len(split) == 597


@pytest.mark.parametrize("limit", [2**20, 0])
def test_nothing_may_be_left(limit):
    split, bad = load(NumberedRecords(3, damaged={0, 1, 2}), limit)
    assert len(split) == 0 and list(bad) == [0, 1, 2]


def test_image_damaged_after_the_check_is_an_error():
    records = NumberedRecords(10)
    split, _ = load(records, 0)
    records.damaged = {4}
    with pytest.raises(UserError, match="image 4"):
        split.load(np.array([1, 4]))


@pytest.mark.parametrize("limit", [2**20, 0])
def test_subset_of_a_subset(limit):
    split, _ = load(NumberedRecords(100), limit)
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
