import os
import shutil
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.sources import load_dataset
from flaxcnn.data.splits import ArraySplit, LazySplit
from flaxcnn.errors import UserError


def write(path, value=0, size=(6, 8), channels=3):
    """An image filled with `value`, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels == 1 else (*size, channels)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


@pytest.fixture
def classes(tmp_path):
    """40 images of class "ant" with values 0..39 and 20 of "bee" with values 100..119."""
    for i in range(60):
        name = f"ant/{i:02}.png" if i < 40 else f"bee/{i:02}.png"
        write(tmp_path / name, i if i < 40 else 60 + i)
    return tmp_path


@pytest.fixture
def splits(tmp_path):
    """Three splits of two classes with 10, 2 and 3 images each; values tell them apart."""
    for split, count, base in (("train", 10, 0), ("val", 2, 50), ("test", 3, 100)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", base + 20 * label + i)
    return tmp_path


def load(path, **kwargs):
    return load_dataset(f"folder:{path}", **kwargs)


def values(split):
    """The fill of each image, [N]; each pixel of an image must have it."""
    images, labels = split.load(np.arange(len(split)))
    fill = images.reshape(len(images), -1)
    assert (fill == fill[:, :1]).all()
    return fill[:, 0].tolist(), labels.tolist()


@pytest.mark.parametrize("limit", [2**20, 0])
def test_three_splits(splits, limit):
    dataset = load(splits, resident_limit=limit)
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (6, 8, 3)
    assert list(dataset.splits) == ["train", "validation", "test"]
    assert isinstance(dataset.splits["train"], ArraySplit if limit else LazySplit)
    assert values(dataset.splits["train"]) == ([*range(10), *range(20, 30)], [0] * 10 + [1] * 10)
    assert values(dataset.splits["validation"]) == ([50, 51, 70, 71], [0, 0, 1, 1])
    assert values(dataset.splits["test"]) == ([100, 101, 102, 120, 121, 122], [0] * 3 + [1] * 3)


@pytest.mark.parametrize("name", ["validation", "valid", "Val"])
def test_names_of_the_validation_split(splits, name):
    (splits / "val").rename(splits / name)
    assert values(load(splits).splits["validation"])[0] == [50, 51, 70, 71]


def test_validation_is_held_out_of_train_where_there_is_none(splits):
    shutil.rmtree(splits / "val")
    dataset = load(splits, validation=0.2)
    train, held = (values(dataset.splits[name]) for name in ("train", "validation"))
    assert sorted(train[0] + held[0]) == [*range(10), *range(20, 30)]
    assert held[1] == [0, 0, 1, 1]
    assert list(load(splits, validation=0).splits) == ["train", "test"]


@pytest.mark.parametrize("split", [(0.6, 0.2, 0.2), (0.7, 0.15, 0.15), (0.9, 0.05, 0.05)])
@pytest.mark.parametrize("limit", [2**20, 0])
def test_classes_are_split_by_the_shares(classes, split, limit):
    dataset = load(classes, split=split, resident_limit=limit)
    parts = [values(dataset.splits[name]) for name in ("train", "validation", "test")]
    assert sorted(sum((fill for fill, _ in parts), [])) == [*range(40), *range(100, 120)]
    for (fill, labels), share in zip(parts, split, strict=True):
        assert labels == [int(value >= 100) for value in fill]
        assert len(fill) == round(60 * share)
        assert abs(labels.count(0) - 40 * share) <= 1 and abs(labels.count(1) - 20 * share) <= 1


def test_split_is_seeded_and_may_leave_a_part_out(classes):
    first, again, other = (values(load(classes, seed=seed).splits["test"])[0] for seed in (0, 0, 1))
    assert first == again and first != other
    assert list(load(classes, split=(0.8, 0.0, 0.2)).splits) == ["train", "test"]
    assert list(load(classes, split=(0.8, 0.2, 0)).splits) == ["train", "validation"]


def test_too_few_images_to_split(tmp_path):
    write(tmp_path / "a" / "1.png")
    write(tmp_path / "b" / "1.png")
    with pytest.raises(UserError, match=r"data\.split=\(0\.7, 0\.15, 0\.15\) leaves test"):
        load(tmp_path)


def test_order_does_not_depend_on_the_file_system(classes, monkeypatch):
    expected = values(load(classes).splits["train"])
    scandir = os.scandir
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert values(load(classes).splits["train"]) == expected


def test_hidden_files_and_other_files_are_left_aside(splits, capsys):
    write(splits / "train" / "cat" / ".hidden.png")
    write(splits / ".cache" / "cat" / "x.png")
    write(splits / "train" / ".thumbnails" / "x.png")
    (splits / "train" / "cat" / "notes.txt").write_text("x")
    (splits / "train" / "notes.txt").write_text("x")
    write(splits / "unlabelled" / "x" / "x.png")
    assert len(load(splits).splits["train"]) == 20
    assert "unlabelled is neither train, validation nor test" in capsys.readouterr().err


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    assert load(tmp_path).class_names == ("bus", "train")


def test_formats_sizes_and_channels_mix(tmp_path):
    for i, suffix in enumerate(("jpg", "JPEG", "png", "webp", "bmp", "PNG")):
        for label, name in enumerate(("a", "b")):
            grey = suffix != "webp" and label == 0
            write(tmp_path / name / f"{i}.{suffix}", 80, (20 + i, 30 - i), 1 if grey else 3)
    whole = (0.5, 0.25, 0.25)
    dataset = load(tmp_path, image_size=(10, 12), split=whole)
    assert dataset.image_shape == (10, 12, 3)
    assert sum(len(split) for split in dataset.splits.values()) == 12
    for split in dataset.splits.values():
        images, _ = split.load(np.arange(len(split)))
        assert np.abs(images.astype(int) - 80).max() <= 3
    assert load(tmp_path, image_size=(10, 12), channels=1).image_shape == (10, 12, 1)
    with pytest.raises(
        UserError, match=r"images differ in size .* is 30x20, .*set data\.image_size"
    ):
        load(tmp_path)


@pytest.mark.parametrize(("colour", "channels"), [(False, 1), (True, 3)])
def test_grey_only_if_every_image_is(tmp_path, colour, channels):
    for name in ("a", "b"):
        for i in range(10):
            write(tmp_path / name / f"{i}.png", 9, channels=1)
    if colour:
        write(tmp_path / "b" / "9.png", 9, channels=3)
    assert load(tmp_path).image_shape == (6, 8, channels)


def test_resize_policy_is_used(tmp_path):
    for name in ("a", "b"):
        for i in range(10):
            write(tmp_path / name / f"{i}.png", 200, (10, 20), 1)
    for resize, black in (("crop", False), ("stretch", False), ("pad", True)):
        dataset = load(tmp_path, image_size=(8, 8), resize=resize)
        images, _ = dataset.splits["train"].load(np.arange(2))
        assert (images[:, 0] == 0).all() == black and (images[:, 4] == 200).all()


@pytest.fixture(params=["truncated", "empty", "header"])
def damaged(request, splits):
    """The `splits` with one damaged image among the training cats, number 4."""
    path = splits / "train" / "cat" / "4.jpg"
    (splits / "train" / "cat" / "4.png").unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = {"truncated": path.read_bytes()[:-40], "empty": b"", "header": b"\xff\xd8hello"}
    path.write_bytes(content[request.param])
    return splits


@pytest.mark.parametrize("limit", [2**20, 0])
@pytest.mark.parametrize("fit", [{}, {"image_size": (6, 8), "channels": 3}])
def test_damaged_image_is_an_error_that_names_it(damaged, limit, fit):
    with pytest.raises(UserError, match=r"train/cat/4\.jpg is damaged") as caught:
        values(load(damaged, resident_limit=limit, **fit).splits["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [2**20, 0])
@pytest.mark.parametrize("fit", [{}, {"image_size": (6, 8), "channels": 3}])
def test_damaged_image_is_skipped_and_counted(damaged, limit, fit, capsys):
    dataset = load(damaged, on_bad_image="skip", resident_limit=limit, **fit)
    # In a streamed split the next image, 5, is shown again instead.
    assert dataset.skipped == bool(limit) and dataset.replaced() == []
    again = [] if limit else [5]
    assert values(dataset.splits["train"])[0] == [*range(4), *again, *range(5, 10), *range(20, 30)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped: ") and "4.jpg" in line
    assert dataset.replaced() == [] if limit else "4.jpg" in dataset.replaced()[0]


def test_missing_folders_are_told_in_one_line(splits, tmp_path):
    def line(path):
        with pytest.raises(UserError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no folder" in line(tmp_path / "none")
    assert "needs at least two folders of images" in line(splits / "train" / "cat")
    write(splits / "validation" / "cat" / "x.png")
    assert "are both the validation split" in line(splits)
    shutil.rmtree(splits / "validation")
    shutil.rmtree(splits / "test" / "dog")
    (splits / "test" / "bird").mkdir()
    assert "test must hold the classes of train; only one of the two has bird, dog" in line(splits)
    (splits / "test" / "bird").rename(splits / "test" / "dog")
    assert "dog holds no image that can be read" in line(splits)
    shutil.rmtree(splits / "test")
    shutil.rmtree(splits / "train")
    assert "has no train folder beside val" in line(splits)


def test_cats_and_dogs(shared, tmp_path):
    archive = shared / "data" / "cats-dogs.tar.gz"
    if not archive.exists():
        pytest.skip(f"needs {archive}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    dataset = load(tmp_path / "cats-dogs", image_size=(64, 64))
    assert dataset.class_names == ("cats", "dogs") and dataset.image_shape == (64, 64, 3)
    counts = {name: np.bincount(split.strata).tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [300, 300], "validation": [75, 75], "test": [125, 125]}
    files = sorted((tmp_path / "cats-dogs" / "train" / "dogs").iterdir())
    photo = cv2.imread(str(files[7]))[:, :, ::-1]
    height, width = photo.shape[:2]
    scale = 64 / min(height, width)
    resized = cv2.resize(
        photo, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
    )
    top, left = (resized.shape[0] - 64) // 2, (resized.shape[1] - 64) // 2
    image = dataset.splits["train"].load(np.array([307]))[0][0].astype(int)
    assert np.abs(image - resized[top : top + 64, left : left + 64]).max() <= 3
