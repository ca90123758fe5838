"""`keypoints:`: COCO's JSON, parts of images around bodies, flips, and mistakes."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.keypoint_files import find_limbs, find_pairs
from flaxcnn.data.sources import load_dataset
from flaxcnn.data.targets import move
from flaxcnn.errors import UserError

NAMES = ("nose", "left_hip", "right_hip")
DOTS = ((30, 20), (40, 38), (20, 40))  # centres of 4x4 dots in a grey of their own


def write(folder, count=2, split="train"):
    """Images of 50x80 (height, width) with three dots, and their annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        image, points = np.zeros((50, 80), np.uint8), []
        for k, (x, y) in enumerate(DOTS):
            x += 5 * i
            image[y - 2 : y + 2, x - 2 : x + 2] = 80 * (k + 1)
            points += [x, y, 2]
        Image.fromarray(image).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "split": split})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "keypoints": points})
    category = {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    return {"categories": [category], "images": images, "annotations": annotations}


def save(folder, values, name="annotations.json"):
    (folder / name).write_text(json.dumps(values))
    return f"keypoints:{folder}"


def check_dots(image, points, visible):
    """Each visible point is at the middle of its dot, by its grey."""
    assert visible.any()
    for k, (x, y) in enumerate(points):
        if visible[k]:
            column, row = int(x), int(y)
            around = np.int32(image[row - 1 : row + 2, column - 1 : column + 2, 0])
            assert (np.abs(around - 80 * (k + 1)) < 40).all(), (k, around)


def test_points_are_where_their_dots_are(tmp_path):
    source = save(tmp_path, write(tmp_path))
    train = load_dataset(source, validation=0, image_size=(100, 160)).splits["train"]
    images, targets = train.load(np.arange(2))
    assert targets.pairs == ((1, 2),) and targets.limbs == ((0, 1), (0, 2))
    for image, points, visible in zip(images, targets.points, targets.visible, strict=True):
        check_dots(image, points, visible)


def test_bodies_are_parts_of_images_around_their_boxes(tmp_path):
    values = write(tmp_path)
    values["annotations"][0]["bbox"] = [16, 16, 28, 28]
    other = dict(values["annotations"][0], id=7, bbox=[29, 16, 14, 26])  # right_hip is outside
    values["annotations"].append(other)
    empty = dict(other, id=8, keypoints=[0, 0, 0] * 3)
    values["annotations"] += [empty, dict(other, id=9, iscrowd=1)]
    source = save(tmp_path, values)
    with pytest.raises(UserError, match="data.image_size is needed"):
        load_dataset(source, validation=0)
    dataset = load_dataset(source, validation=0, image_size=(70, 70), resize="pad")
    assert list(dataset.files["train"]) == ["0.png", "1.png", "0.png#7"]
    images, targets = dataset.splits["train"].load(np.arange(3))
    np.testing.assert_array_equal(targets.visible, [[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    for image, points, visible in zip(images, targets.points, targets.visible, strict=True):
        check_dots(image, points, visible)
    # 28 pixels and a quarter of margin, from 12 to 48, become 70.
    np.testing.assert_allclose(targets.points[0, 0], np.array([30 - 12, 20 - 12]) * 70 / 36)


def test_a_flip_exchanges_left_and_right(tmp_path):
    values = write(tmp_path)
    values["categories"][0]["flip_pairs"] = [[0, 2]]
    source = save(tmp_path, values)
    target = load_dataset(source, validation=0).splits["train"].load(np.array([0]))[1]
    assert target.pairs == ((0, 2),)
    mirror = np.array([[-1, 0, 80], [0, 1, 0], [0, 0, 1]], np.float32)
    moved = jax.jit(lambda t: move(t, mirror, (50, 80)))(jax.tree.map(lambda x: x[0], target))
    mirrored = [(80 - x, y) for x, y in DOTS]
    np.testing.assert_allclose(moved.points, [mirrored[2], mirrored[1], mirrored[0]])


def test_the_simple_layout(tmp_path):
    names = ["r_ankle", "l_ankle", "neck"]
    values = {"joint_names": names}
    for split, count in (("train", 3), ("test", 2)):
        write(tmp_path / split, count)
        joints = [[x, y] for x, y in DOTS]
        values[split] = [{"file_name": f"{i}.png", "joints": joints} for i in range(count)]
    dataset = load_dataset(save(tmp_path, values), validation=0.34)
    assert {k: len(v) for k, v in dataset.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    images, targets = dataset.splits["test"].load(np.array([0]))
    check_dots(images[0], targets.points[0], targets.visible[0])
    assert targets.pairs == ((1, 0),) and dataset.class_names == tuple(names)
    values["test"][0]["joints"].pop()
    with pytest.raises(UserError, match="annotations.json test 0 has 2 joints, and there are 3"):
        load_dataset(save(tmp_path, values))


def test_a_file_per_split(tmp_path):
    values = write(tmp_path, 3)
    for name in ("train.json", "val.json", "test.json"):
        save(tmp_path, values, name)
    dataset = load_dataset(f"keypoints:{tmp_path}")
    assert [len(dataset.splits[s]) for s in ("train", "validation", "test")] == [3, 3, 3]


def test_all_mistakes_are_told_at_once(tmp_path):
    values = write(tmp_path, 6)
    annotations = values["annotations"]
    annotations[0]["keypoints"] = annotations[0]["keypoints"][:6]
    annotations[1]["keypoints"][0] = 85
    annotations[2]["bbox"] = [70, 10, 20, 20]
    annotations[3]["image_id"] = 99
    annotations[4]["category_id"] = 5
    values["images"][5]["file_name"] = "none.png"
    with pytest.raises(UserError) as caught:
        load_dataset(save(tmp_path, values))
    told = str(caught.value)
    for line in (
        "annotation 0 has 2 joints, and there are 3",
        "annotation 3: there is no image 99",
        "annotation 4: there is no category 5",
        "annotation 1: nose (85, 20) is outside 1.png, 80x50",
        "annotation 2: the box 70, 10, 20, 20 (left, top, width, height) is outside 2.png, 80x50",
        "none.png",
    ):
        assert line in told
    assert len(told.split("\n")) == 7
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(UserError, match="is no keypoint JSON as COCO's"):
        load_dataset(f"keypoints:{tmp_path}")


def test_names_tell_pairs_and_limbs():
    coco = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder", "left_elbow")
    assert find_pairs(coco) == ((1, 2), (3, 4))
    assert find_limbs(coco) == ((5, 3),)
    assert find_pairs(("R_hip", "L_hip", "upper_left", "upper_right")) == ((1, 0), (2, 3))
    limbs = find_limbs(("r_hip", "l_hip", "r_knee", "l_knee", "neck", "head_top"))
    assert limbs == ((2, 0), (3, 1), (5, 4))
