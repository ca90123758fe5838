"""`boxes:`: CSV and JSON, their mistakes, and boxes where their rectangles are."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.record import Record
from flaxcnn.data.sources import check_source, load_dataset
from flaxcnn.errors import UserError

COLUMNS = ("file", "class", "left", "top", "right", "bottom")


def write(folder, count, *, names=("a", "b"), split=None):
    """Images of 20x30 with a white rectangle each, and the rows that say where."""
    rows = []
    for i in range(count):
        box = (2 + i, 3, 12 + i, 15)
        image = np.zeros((20, 30), np.uint8)
        image[box[1] : box[3], box[0] : box[2]] = 255
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "pictures" / f"{i}.png")
        row = dict(zip(COLUMNS, (f"pictures/{i}.png", names[i % len(names)], *box), strict=True))
        rows.append(row | ({"split": split[i]} if split else {}))
    return rows


def save(file, rows):
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
        return
    with open(file, "w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["boxes.csv", "boxes.json"])
@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_boxes_are_around_what_they_name(tmp_path, name, resize):
    splits = ["train", "val", "test", "train", "train", "test"]
    save(tmp_path / name, write(tmp_path, 6, split=splits))
    dataset = load_dataset(f"boxes:{tmp_path}", image_size=(40, 40), resize=resize)
    assert dataset.class_names == ("a", "b") and not dataset.labelled
    counts = {split: len(of_split) for split, of_split in dataset.splits.items()}
    assert counts == {"train": 3, "validation": 1, "test": 2}
    for of_split in dataset.splits.values():
        images, targets = of_split.load(np.arange(len(of_split)))
        assert targets.boxes.shape == (len(images), 1, 4) and targets.valid.all()
        for image, box in zip(images, targets.boxes[:, 0], strict=True):
            rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis)) for axis in (1, 0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, found, atol=0.7)


def test_a_file_in_each_split_or_none(tmp_path):
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        save(tmp_path / "divided" / split / "boxes.csv", write(tmp_path / "divided" / split, count))
    dataset = load_dataset(f"boxes:{tmp_path / 'divided'}")
    assert [len(dataset.splits[s]) for s in ("train", "validation", "test")] == [4, 2, 2]
    assert list(dataset.files["test"]) == ["test/pictures/0.png", "test/pictures/1.png"]
    save(tmp_path / "some.csv", write(tmp_path, 10))
    dataset = load_dataset(f"boxes:{tmp_path / 'some.csv'}", split=(0.6, 0.2, 0.2))
    assert [len(dataset.splits[s]) for s in ("train", "validation", "test")] == [6, 2, 2]


def test_all_mistakes_are_told_at_once_up_to_20(tmp_path):
    rows = write(tmp_path, 8, split=["train"] * 8)
    rows[0]["right"] = 31.5
    rows[1]["file"] = "pictures/none.png"
    rows[2]["class"] = ""
    rows[3]["left"], rows[3]["right"] = 20, 10
    rows[4]["top"] = "high"
    rows[5]["file"] = "pictures/6.png"
    rows[7]["split"] = "exam"
    save(tmp_path / "boxes.csv", rows)
    with pytest.raises(UserError) as caught:
        load_dataset(f"boxes:{tmp_path}")
    first, *lines = str(caught.value).split("\n")
    assert first == f"boxes:{tmp_path}:"
    for row, words in (
        (2, "the box 2, 3, 31.5, 15 is outside 0.png, 30x20"),
        (3, "none.png"),
        (4, "has no class"),
        (5, "has no area"),
        (6, "top must be a number, got 'high'"),
        (8, "6.png has a box already"),
        (9, "split must be train, validation or test, got 'exam'"),
    ):
        (line,) = [x for x in lines if x.startswith(f"{tmp_path}/boxes.csv:{row}")]
        assert words in line
    assert len(lines) == 7
    save(tmp_path / "boxes.csv", [row | {"left": -5} for row in write(tmp_path, 25)])
    with pytest.raises(UserError, match="\nand 5 more$"):
        load_dataset(f"boxes:{tmp_path}")


def test_classes_of_later_splits_are_those_of_train(tmp_path):
    rows = write(tmp_path, 4, split=["train", "train", "test", "test"])
    rows[3]["class"] = "bird"
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        of_split = [r | {"file": "../" + r["file"]} for r in rows if r["split"] == split]
        save(tmp_path / split / "boxes.json", of_split)
    (tmp_path / "boxes.csv").unlink(missing_ok=True)
    with pytest.raises(UserError, match="entry 1: class 'bird' is not one of a, b"):
        load_dataset(f"boxes:{tmp_path}")


def test_a_run_goes_on_with_the_same_boxes_only(tmp_path):
    rows = write(tmp_path, 6)
    save(tmp_path / "boxes.csv", rows)
    source = f"boxes:{tmp_path}"
    before = load_dataset(source, seed=3)
    record = Record(before.class_names, before.version, before.files)
    check_source(source, record)
    again = load_dataset(source, seed=4, record=record)
    assert again.files == before.files
    np.testing.assert_array_equal(again.splits["test"].images, before.splits["test"].images)
    rows[2]["left"] = 3
    save(tmp_path / "boxes.csv", rows)
    for check in (
        lambda: check_source(source, record),
        lambda: load_dataset(source, record=record),
    ):
        with pytest.raises(UserError, match="is not what this run was trained on"):
            check()
