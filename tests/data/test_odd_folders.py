"""Folders of images that are not as they should be: read, or reported in one line."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.record import Record, hash_files
from flaxcnn.data.sources import load_dataset
from flaxcnn.errors import UserError


def write(path, value=0, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def fill(root, names, count=3, suffix="png"):
    for at, name in enumerate(names):
        for i in range(count):
            write(root / name / f"{i}.{suffix}", 20 * at + i)


def load(path, **kwargs):
    return load_dataset(f"folder:{path}", **kwargs)


def line(path, **kwargs):
    with pytest.raises(UserError) as caught:
        load(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(split):
    return split.load(np.arange(len(split)))[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "names", [("train", "test"), ("train",), ("train", "test1"), ("Training",)]
)
def test_splits_without_classes_are_no_classes(tmp_path, names):
    fill(tmp_path, names)
    assert "has no folder per class: labels are the names of folders, as in" in line(tmp_path)


def test_a_test_folder_without_classes_is_not_measured(tmp_path, capsys):
    fill(tmp_path, ("train/a", "train/b", "test"), 10)
    assert list(load(tmp_path).splits) == ["train", "validation"]
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/test has no folder per class: it is not measured",
        f"folder:{tmp_path} has no test split: validation stands in for it",
    ]
    fill(tmp_path, ("val",))
    assert "val has images, but no folder per class" in line(tmp_path)


def test_folders_within_classes_are_read(tmp_path, capsys):
    fill(tmp_path, ("train/a", "train/b", "test/a", "test/b"))
    write(tmp_path / "train" / "a" / "2024" / "may" / "0.png", 7)
    dataset = load(tmp_path, validation=0)
    assert values(dataset.splits["train"]) == [0, 1, 2, 7, 20, 21, 22]
    assert dataset.splits["train"].strata.tolist() == [0] * 4 + [1] * 3
    assert "images in train/a/2024, train/a/2024/may are their outer" in capsys.readouterr().err


def test_splits_within_classes_are_refused(tmp_path):
    fill(tmp_path, ("a/train", "a/test", "b/train", "b/test"))
    assert f"a is divided into splits: they must stand above the classes, as {tmp_path}" in line(
        tmp_path
    )


def test_a_set_within_a_folder_is_found_by_the_hint(tmp_path):
    fill(tmp_path, ("photos/a", "photos/b"))
    assert line(tmp_path).endswith(f"found photos; is it folder:{tmp_path}/photos?")


def test_formats_are_read_or_counted(tmp_path, capsys):
    kinds = ("tif", "tiff", "gif", "jfif", "webp", "bmp", "png", "JPG")
    for at, suffix in enumerate(kinds):
        fill(tmp_path, (f"a{at}",), 3, suffix if suffix not in ("jfif", "JPG") else "jpeg")
        if suffix in ("jfif", "JPG"):
            for i in range(3):
                file = tmp_path / f"a{at}" / f"{i}.jpeg"
                file.rename(file.with_suffix(f".{suffix}"))
    for i in range(12):
        (tmp_path / "a0" / f"{i}.heic").write_bytes(b"")
    for name in ("x.svg", "y.svg", "z.svg", "README", ".hidden.png", "._0.png"):
        (tmp_path / "a1" / name).write_bytes(b"")
    fill(tmp_path, ("__MACOSX/a0", "a1/__MACOSX"))
    write(tmp_path / "loose.png")
    dataset = load(tmp_path)
    assert len(dataset.class_names) == len(kinds)
    assert sum(map(len, dataset.splits.values())) == 3 * len(kinds)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"skipped in {tmp_path}: 12 .heic, 3 .svg, 1 without suffix",
        f"skipped in {tmp_path}: 1 outside the classes' folders",
    ]


def test_a_class_of_other_files_names_them(tmp_path):
    fill(tmp_path, ("a", "b"))
    (tmp_path / "c").mkdir()
    assert line(tmp_path).endswith("c holds no image that can be read")
    (tmp_path / "c" / "0.HEIC").write_bytes(b"")
    assert line(tmp_path).endswith("c holds no image that can be read, but 1 .heic")


def test_links_are_followed_and_loops_left_aside(tmp_path, capsys):
    fill(tmp_path / "store", ("x", "b"))
    root = tmp_path / "set"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "store" / "x")
    (root / "b").symlink_to(tmp_path / "store" / "b")
    (tmp_path / "store" / "b" / "again").symlink_to(root / "b")
    dataset = load(root)
    assert dataset.class_names == ("a", "b") and sum(map(len, dataset.splits.values())) == 6
    assert "b/again link to a folder above them: skipped" in capsys.readouterr().err
    (root / "a" / "gone.png").symlink_to("nowhere")
    assert "a/gone.png: No such file or directory" in line(root)


def test_classes_that_differ_in_case(tmp_path, capsys):
    fill(tmp_path, ("Cat", "cat"))
    assert load(tmp_path).class_names == ("Cat", "cat")
    assert "classes Cat, cat differ in case alone and stay apart" in capsys.readouterr().err


def test_copies_of_training_images_are_counted(tmp_path, capsys):
    fill(tmp_path / "train", ("a", "b"))
    fill(tmp_path / "test", ("a",))
    for i in range(3):
        write(tmp_path / "test" / "b" / f"{i}.png", 100 + i)  # the same names are no copies
    load(tmp_path)
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        said.startswith("WARNING: 3 of 6 images of test are also in train") and "test/a/0" in said
    )


def test_a_class_of_one_image_stays_in_train(tmp_path):
    fill(tmp_path, ("rare",), 1)
    fill(tmp_path, ("a",), 3)
    fill(tmp_path, ("z",), 30)
    for seed in range(3):
        assert np.bincount(load(tmp_path, seed=seed).splits["train"].strata)[1] == 1


def test_all_images_that_cannot_be_read_are_named_together(tmp_path, capsys):
    fill(tmp_path, ("train/a", "train/b", "test/a", "test/b"), 15)
    names = [f"{split}/a/{i}.png" for split in ("train", "test") for i in range(11)]
    for name in names:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:45])
    (tmp_path / "test/b/3.png").write_text("no image")
    said = line(tmp_path, validation=0)
    assert said.startswith(f"folder:{tmp_path}: 23 images cannot be read: ")
    assert said.endswith("; and 3 more (to skip them: data.on_bad_image=skip)")
    assert said.count(" is damaged: ") == 20 and "train/a/10.png is damaged" in said
    dataset = load(tmp_path, validation=0, on_bad_image="skip")
    assert dataset.skipped == 23 and len(dataset.splits["test"]) == 18
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 21 and said[-1] == "skipped: and 3 more"
    assert set(dataset.files["skipped"]) == {*names, "test/b/3.png"}


def test_only_the_header_tells_nothing_if_no_image_has_one(tmp_path):
    fill(tmp_path, ("a", "b"))
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    assert "none of the 6 images can be read: " in line(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    fill(tmp_path, ("a", "b"))
    scandir = os.scandir

    def refuse(path):  # chmod does not keep root out
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert line(tmp_path).endswith("b: Permission denied")


def recorded(path, **kwargs):
    dataset = load(path, **kwargs)
    return dataset, Record(dataset.class_names, dataset.version, dataset.files)


@pytest.mark.parametrize("limit", [2**20, 0])
def test_splits_stay_as_they_were_recorded(tmp_path, capsys, limit):
    fill(tmp_path, ("a", "b"), 20)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    kwargs = {"on_bad_image": "skip", "channels": 1, "image_size": (6, 8), "resident_limit": limit}
    before, record = recorded(tmp_path, **kwargs)
    counts = {"train": 27, "test": 6, "validation": 6, "skipped": 1}
    if not limit:  # what is not decoded yet is not known to be damaged
        counts = {"train": 28, "test": 6, "validation": 6}
    assert {name: len(files) for name, files in record.files.items()} == counts
    assert record.version == hash_files(record.files)
    capsys.readouterr()
    write(tmp_path / "a" / "0a.png", 200)
    write(tmp_path / "b" / "0a.tif", 201, (30, 30))
    other = load(tmp_path, **kwargs)
    assert {200, 201} & {v for split in other.splits.values() for v in values(split)}
    capsys.readouterr()
    again = load(tmp_path, record=record, **kwargs)
    assert capsys.readouterr().err == (
        f"folder:{tmp_path}: 2 new and not in this run: a/0a.png, b/0a.tif\n"
    )
    assert again.files == record.files and again.version == record.version
    for name, split in before.splits.items():
        for ours, theirs in zip(
            again.splits[name].load(np.arange(len(split))),
            split.load(np.arange(len(split))),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
        files = list(record.files[name])
        files = [files[i + (file == "a/3.png")] for i, file in enumerate(files)]
        assert values(split) == [cv2.imread(str(tmp_path / file))[0, 0, 0] for file in files]


def test_what_has_changed_is_named(tmp_path):
    fill(tmp_path, ("train/a", "train/b", "test/a", "test/b"), 12)
    _, record = recorded(tmp_path, validation=0)
    start = f"folder:{tmp_path} is not what this run was trained on: "

    def said():
        return line(tmp_path, validation=0, record=record).removeprefix(start)

    fill(tmp_path, ("train/zebra", "test/zebra"))
    assert said() == "class 'zebra' is new"
    for split in ("train", "test"):
        (tmp_path / split / "b").rename(tmp_path / split / "bee")
    assert said() == "classes 'bee', 'zebra' are new; class 'b' is gone"
    for split in ("train", "test"):
        (tmp_path / split / "bee").rename(tmp_path / split / "b")
        (tmp_path / split / "zebra").rename(tmp_path / f"{split}-zebra")
    for i in range(2, 12):
        (tmp_path / "train" / "a" / f"{i}.png").rename(tmp_path / f"{i}.png")
    assert said() == "10 files fewer in train, first missing: train/a/10.png"
    for i in range(2, 12):
        (tmp_path / f"{i}.png").rename(tmp_path / "train" / "a" / f"{i}.png")
    size = (tmp_path / "test" / "b" / "0.png").stat().st_size
    write(tmp_path / "test" / "b" / "0.png", 9, (60, 80))
    now = (tmp_path / "test" / "b" / "0.png").stat().st_size
    assert said() == f"1 file changed in test, first: test/b/0.png has {now} bytes, it had {size}"
    file = tmp_path / "test" / "b" / "0.png"
    file.write_bytes(b"x" * size)
    assert said().startswith(f"{file} is no JPEG, PNG")
