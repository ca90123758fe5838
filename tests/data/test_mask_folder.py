import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.annotated import BoxNote, KeypointNote, MaskFile
from flaxcnn.data.feeders import Streaming
from flaxcnn.data.images import fit_matrix
from flaxcnn.data.plans import EvalPlan
from flaxcnn.data.sources import check_source, load_dataset
from flaxcnn.data.splits import ArraySplit, LazySplit
from flaxcnn.data.targets import Boxes, Keypoints, Mask
from flaxcnn.errors import UserError


def write(folder, name, mask, *, palette=False, image=None):
    """An image that shows ten times its mask, and the mask."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(mask, np.uint8))
    if palette:
        picture.putpalette([7 * i % 256 for i in range(768)])
        assert picture.mode == "P"
    picture.save(folder / "masks" / f"{name}.png")
    shown = np.asarray(mask, np.uint8) * 10 if image is None else image
    Image.fromarray(shown).save(folder / "images" / f"{name}.png")


@pytest.fixture
def folder(tmp_path):
    """6, 2 and 2 images of 4x6 pixels in splits; classes a, b, c, and 3 is ignored."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for i in range(count):
            write(tmp_path / split, str(i), rng.integers(0, 4, (4, 6)), palette=i % 2 == 0)
    named = {"classes": ["a", "b", "c", "void"], "ignore_index": 3}
    (tmp_path / "classes.json").write_text(json.dumps(named))
    return tmp_path


def load(folder, **kwargs):
    return load_dataset(f"masks:{folder}", **kwargs)


@pytest.mark.parametrize("limit", [2**20, 0])
def test_grey_and_palette_masks_in_splits(folder, limit):
    dataset = load(folder, resident_limit=limit)
    assert dataset.class_names == ("a", "b", "c") and dataset.image_shape == (4, 6, 1)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    train = dataset.splits["train"]
    assert isinstance(train, ArraySplit if limit else LazySplit)
    images, masks = train.load(np.arange(6))
    values = images[..., 0] // 10
    np.testing.assert_array_equal(masks.classes, np.where(values == 3, 255, values))
    assert masks.classes.dtype == np.uint8 and not train.strata.any()


def test_a_folder_without_splits_is_divided_and_numbers_are_classes(tmp_path, capsys):
    for i in range(10):
        write(tmp_path, f"{i}", [[i % 3, 255], [0, 1]])
    dataset = load(tmp_path, split=(0.6, 0.2, 0.2))
    assert dataset.class_names == ("0", "1", "2") and not dataset.labelled
    assert [len(dataset.splits[name]) for name in ("train", "validation", "test")] == [6, 2, 2]
    assert "classes without training image" not in capsys.readouterr().err


def test_worker_processes_load_masks(folder):
    train = load(folder, resident_limit=0).splits["train"]
    (batch,) = Streaming(train, workers=1).feed(EvalPlan(6, 3, 2))
    images, masks = train.load(np.arange(6))
    np.testing.assert_array_equal(batch[0].reshape(images.shape), images)
    np.testing.assert_array_equal(batch[1].classes.reshape(6, 4, 6), masks.classes)


def test_mistakes_are_told_together(folder):
    (folder / "train" / "masks" / "1.png").unlink()
    (folder / "val" / "images" / "0.png").unlink()
    (folder / "test" / "images" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(folder)
    first, *lines = str(caught.value).split("\n")
    assert first == f"masks:{folder}:" and len(lines) == 3
    assert lines[0].startswith(f"{folder}/train/images/1.png has no mask")
    assert lines[1] == f"{folder}/val/masks/0.png has no image in {folder}/val/images"
    assert lines[2].endswith("0.png would have the same mask")


def test_at_most_twenty_mistakes(tmp_path):
    for i in range(25):
        write(tmp_path, f"{i:02}", [[0, 1]])
        (tmp_path / "masks" / f"{i:02}.png").unlink()
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    lines = str(caught.value).split("\n")
    assert len(lines) == 22 and lines[-1] == "and 5 more"


def test_wrong_masks(folder, capsys):
    train = folder / "train"
    write(train, "0", np.full((4, 6), 7))
    write(train, "1", np.zeros((6, 4)), image=np.zeros((4, 6), np.uint8))
    (train / "masks" / "2.png").write_bytes((train / "masks" / "2.png").read_bytes()[:60])
    Image.new("RGB", (6, 4)).save(train / "masks" / "3.png")
    with pytest.raises(UserError) as caught:
        load(folder)
    lines = str(caught.value).split("\n")
    masks = train / "masks"
    assert lines[0].startswith(f"masks:{folder}: 4 images cannot be read: {masks}/0.png has a")
    assert "a pixel of class 7: there are classes 0..2, and 255 is ignored" in lines[0]
    assert lines[1].startswith(f"{masks}/1.png is 4x6, and its image 6x4; images are turned")
    assert lines[2].startswith(f"{masks}/2.png is damaged")
    assert lines[3].startswith(f"{masks}/3.png is a picture in RGB: a mask is grey or has")
    assert len(lines) == 4
    dataset = load(folder, on_bad_image="skip")
    assert len(dataset.splits["train"]) == 2 and dataset.skipped == 4
    lazy = load(folder, on_bad_image="skip", resident_limit=0)
    _, masks = lazy.splits["train"].load(np.arange(6))
    _, good = dataset.splits["train"].load(np.array([0]))
    for i in range(5):  # the fifth is the first good one
        np.testing.assert_array_equal(masks.classes[i], good.classes[0])
    assert len(lazy.replaced()) == 4
    with pytest.raises(UserError, match="a pixel of class 7"):
        load(folder, resident_limit=0).splits["train"].load(np.array([0]))


def test_other_mistakes(tmp_path, folder):
    with pytest.raises(UserError, match="needs images/ and masks/"):
        load(folder / "train" / "images")
    (folder / "classes.json").write_text('{"classes": "abc"}')
    with pytest.raises(UserError, match="classes must be a list"):
        load(folder)
    binary = tmp_path / "binary"
    write(binary, "0", [[0, 255]])
    with pytest.raises(UserError, match=r"are of class 0 \(255 is ignored\)"):
        load(binary)


def test_a_run_sees_that_its_masks_have_changed(folder):
    from flaxcnn.data.record import Record

    for i in range(6):  # images of two sizes, as most folders have
        write(folder / "train", str(i), np.eye(5 + i % 2))
    dataset = load(folder, image_size=(4, 4), channels=1)
    record = Record(dataset.class_names, dataset.version, dataset.files)
    check_source(f"masks:{folder}", record)
    write(folder / "train", "1", np.zeros((9, 90)))
    with pytest.raises(UserError, match="train/images/1.png has"):
        check_source(f"masks:{folder}", record)


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(5, 9), (14, 11)])
def test_what_is_noted_moves_as_targets_do(tmp_path, size, resize):
    """On the host as `data/targets.py` has it for the device."""
    rng = np.random.default_rng(1)
    shape = (10, 13)
    matrix = fit_matrix(shape, size, resize)
    classes = rng.integers(0, 5, shape)
    write(tmp_path, "0", classes)
    mask = MaskFile(str(tmp_path / "masks" / "0.png"), 5, None).fitted(matrix, shape, size)
    expected = Mask(classes.astype(np.uint8)).moved(jnp.asarray(matrix), size)
    np.testing.assert_array_equal(mask.classes, expected.classes)

    points = rng.uniform(0, 10, (4, 2)).astype(np.float32)
    visible = np.array([True, True, True, False])
    ours = KeypointNote(points, visible, ((0, 1),)).fitted(matrix, shape, size)
    theirs = Keypoints(points, visible, ((0, 1),)).moved(jnp.asarray(matrix), size)
    np.testing.assert_array_equal(ours.visible, theirs.visible)
    np.testing.assert_allclose(ours.points, theirs.points, atol=1e-5)

    corners = np.array([[1, 2, 6, 8], [0, 0, 13, 10], [0.1, 0.2, 0.4, 0.5]], np.float32)
    labels, valid, area = np.arange(3, dtype=np.int32), np.ones(3, bool), np.full(3, 5, np.float32)
    crowd = np.zeros(3, bool)
    ours = BoxNote(corners, labels, valid, crowd, area).fitted(matrix, shape, size)
    theirs = Boxes(corners, valid, labels, crowd, area).moved(jnp.asarray(matrix), size)
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5)
    np.testing.assert_allclose(ours.area, theirs.area, rtol=1e-4)
