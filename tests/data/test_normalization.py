import numpy as np
import pytest

from flaxcnn.data import normalization
from flaxcnn.data.normalization import compute_normalization, find_normalization
from flaxcnn.data.splits import ArraySplit, Records, stream_records
from flaxcnn.errors import UserError


class Noise(Records):
    """Images that differ in brightness; `read` counts."""

    def __init__(self, count):
        random = np.random.default_rng(0)
        levels = random.integers(0, 200, (count, 1, 1, 1))
        self.images = (levels + random.integers(0, 56, (count, 3, 4, 2))).astype(np.uint8)
        self.counts = np.zeros(count, int)

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        for i in indices:
            self.counts[i] += 1
            yield self.images[i], 0

    def labels(self):
        return np.zeros(len(self), np.int32)


def test_a_streamed_split_is_sampled_and_one_in_memory_is_not(monkeypatch):
    monkeypatch.setattr(normalization, "_SAMPLED", 300)
    records = Noise(3000)
    split = stream_records(records, replace=False)
    mean, std = find_normalization("auto", split, 2)
    assert records.counts.sum() == 300 and records.counts.max() == 1
    chosen = records.images[records.counts == 1] / 255
    np.testing.assert_allclose(mean, chosen.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, chosen.std(axis=(0, 1, 2)), rtol=1e-6)
    first = records.counts.copy()
    for a, b in zip(find_normalization("sample", split, 2), (mean, std), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(records.counts, 2 * first)  # the same images again
    assert abs(np.flatnonzero(first).mean() - 1500) < 5 * 3000 / 12**0.5 / 300**0.5
    in_memory = ArraySplit(records.images, records.labels())
    exact = records.images / 255
    for how, of in (("auto", in_memory), ("data", in_memory), ("data", split)):
        mean, std = find_normalization(how, of, 2)
        np.testing.assert_allclose(mean, exact.mean(axis=(0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, exact.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_sample_of_a_small_split_is_all_of_it():
    records = Noise(500)
    sampled = find_normalization("auto", stream_records(records, replace=False), 2)
    exact = compute_normalization(ArraySplit(records.images, records.labels()))
    for a, b in zip(sampled, exact, strict=True):
        np.testing.assert_array_equal(a, b)


def test_given_numbers_are_taken():
    split = stream_records(Noise(5), replace=False)
    mean, std = find_normalization(((0.5, 0.25), (0.1, 1)), split, 2)
    assert mean.tolist() == [0.5, 0.25] and std.tolist() == [np.float32(0.1), 1]
    assert split.records.counts.sum() == 0
    with pytest.raises(UserError, match="data.normalization has 2 channels, images have 3"):
        find_normalization(((0.5, 0.25), (0.1, 1)), split, 3)
