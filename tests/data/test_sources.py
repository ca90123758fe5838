import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flaxcnn.data.normalization import compute_normalization
from flaxcnn.data.sources import load_dataset
from flaxcnn.data.splits import ArraySplit
from flaxcnn.errors import UserError


def whole(split):
    return split.load(np.arange(len(split)))


def test_digits_are_scikit_learns():
    dataset = load_dataset("digits", validation=0)
    assert dataset.image_shape == (8, 8, 1) and dataset.skipped == 0
    assert dataset.class_names == tuple("0123456789")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 1437,
        "test": 360,
    }
    parts = [whole(split) for split in dataset.splits.values()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    digits = load_digits()
    scaled = np.array([[round(x * 255 / 16) for x in row] for row in digits.data], np.uint8)
    ours = np.column_stack([images.reshape(-1, 64), labels])
    theirs = np.column_stack([scaled, digits.target])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert images.min() == 0 and images.max() == 255


def test_digits_test_split_is_the_same_for_every_seed_and_stratified():
    first, second = (load_dataset("digits", seed=seed) for seed in (0, 1))
    for a, b in zip(whole(first.splits["test"]), whole(second.splits["test"]), strict=True):
        np.testing.assert_array_equal(a, b)
    counts = np.bincount(first.splits["test"].strata)
    np.testing.assert_allclose(counts, np.bincount(load_digits().target) / 5, atol=1)
    a, b = (whole(dataset.splits["validation"])[0] for dataset in (first, second))
    assert len(a) == len(b) == 144 and not np.array_equal(a, b)
    assert len(first.splits["train"]) == 1437 - 144


def test_digits_come_to_size_and_channels():
    dataset = load_dataset("digits", image_size=(32, 32), resize="pad", channels=3)
    images, _ = dataset.splits["train"].load(np.arange(4))
    assert dataset.image_shape == images.shape[1:] == (32, 32, 3)


def test_same_arguments_same_splits():
    first, second = (load_dataset("digits", seed=3) for _ in range(2))
    for name in ("train", "validation", "test"):
        for a, b in zip(whole(first.splits[name]), whole(second.splits[name]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"source": "digit"}, "data.source must be digits, tfds:<name> or folder:<path>"),
        ({"source": "tfds:"}, "data.source must be"),
        ({"resize": "x"}, "data.resize must be one of crop, stretch, pad, got 'x'"),
        ({"on_bad_image": "warn"}, "data.on_bad_image must be one of error, skip, got 'warn'"),
        ({"channels": 2}, "data.channels must be one of 0, 1, 3, got 2"),
        ({"image_size": (8,)}, "data.image_size must be"),
        ({"image_size": (8, 0)}, "data.image_size must be"),
        ({"split": (0.5, 0.5)}, "data.split must be"),
        ({"split": (0.6, 0.2, 0.3)}, "data.split must be"),
        ({"split": (1.2, -0.1, -0.1)}, "data.split must be"),
        ({"split": (0.0, 0.5, 0.5)}, "data.split must be"),
        ({"validation": 1.0}, "data.validation must be in"),
        ({"validation": -0.1}, "data.validation must be in"),
        ({"validation": 1e-6}, "data.validation=1e-06 leaves validation or train without images"),
        ({"resident_limit": -1}, "data.resident_limit must be at least 0"),
    ],
)
def test_wrong_values_name_the_field_in_one_line(arguments, line):
    with pytest.raises(UserError) as caught:
        load_dataset(**{"source": "digits"} | arguments)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_normalization_equals_numpy():
    images = np.random.default_rng(0).integers(0, 256, (1000, 5, 7, 3), dtype=np.uint8)
    images[..., 1] //= 3
    mean, std = compute_normalization(ArraySplit(images, np.zeros(1000, np.int32)))
    pixels = images.astype(np.float64) / 255
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-7)


def test_normalization_is_exact_in_any_order():
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 1), dtype=np.uint8)
    split = ArraySplit(images, np.zeros(3000, np.int32))
    shuffled = split.subset(np.random.default_rng(1).permutation(3000))
    for a, b in zip(compute_normalization(split), compute_normalization(shuffled), strict=True):
        np.testing.assert_array_equal(a, b)


def test_normalization_of_a_constant_channel():
    images = np.full((10, 4, 4, 2), 51, np.uint8)
    images[::2, :, :, 1] = 0
    mean, std = compute_normalization(ArraySplit(images, np.zeros(10, np.int32)))
    np.testing.assert_allclose(mean, [0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(std, [1, 0.1], rtol=1e-6)


def test_digits_need_neither_tfds_nor_grain():
    script = (
        "import sys; from flaxcnn.data.sources import load_dataset; "
        "import flaxcnn.data.feeders; load_dataset('digits'); "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'grain') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
