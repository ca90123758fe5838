import importlib.util
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flaxcnn.data import tfds_records, tfds_source
from flaxcnn.data.images import ImageFormat
from flaxcnn.data.normalization import compute_normalization
from flaxcnn.data.record import Record
from flaxcnn.data.sources import load_dataset
from flaxcnn.errors import UserError


def pick(split, count=50):
    indices = np.random.default_rng(0).integers(0, len(split), count)
    return indices, *split.load(indices)


def test_mnist_equals_tfds(tfds_dir):
    dataset = load_dataset("tfds:mnist", validation=0)
    assert dataset.image_shape == (28, 28, 1) and dataset.class_names == tuple("0123456789")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 60_000,
        "test": 10_000,
    }
    for name, split in dataset.splits.items():
        source = tfds.data_source("mnist", split=name, data_dir=tfds_dir)
        for index, image, label in zip(*pick(split), strict=True):
            np.testing.assert_array_equal(image, source[int(index)]["image"])
            assert label == source[int(index)]["label"]
    mean, std = compute_normalization(dataset.splits["train"])
    np.testing.assert_allclose((mean[0], std[0]), (0.1307, 0.3081), atol=5e-5)


def test_cifar10_equals_tfds(tfds_dir):
    dataset = load_dataset("tfds:cifar10", validation=0)
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    source = tfds.data_source("cifar10", split="train", data_dir=tfds_dir)
    for index, image, label in zip(*pick(dataset.splits["train"]), strict=True):
        np.testing.assert_array_equal(image, source[int(index)]["image"])
        assert label == source[int(index)]["label"]
    mean, std = compute_normalization(dataset.splits["train"])
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=6e-5)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=6e-5)


def test_reading_imports_no_tensorflow(tfds_dir):
    script = (
        "import sys; from flaxcnn.data.tfds_source import open_tfds; "
        "from flaxcnn.data.images import ImageFormat; import numpy as np; "
        "records = open_tfds('mnist', ImageFormat((), 'crop', 0)).records['test']; "
        "print(next(records.read(np.array([3])))[0].shape, 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(28, 28, 1) False"


def test_records_are_picklable_and_lazy(tfds_dir):
    records = tfds_source.open_tfds("mnist", ImageFormat((14, 14), "crop", 3)).records["test"]
    assert len(pickle.dumps(records)) < 100_000
    indices = np.array([9_999, 0])
    for (a, label_a), (b, label_b) in zip(
        records.read(indices), pickle.loads(pickle.dumps(records)).read(indices), strict=True
    ):
        assert a.shape == (14, 14, 3) and label_a == label_b
        np.testing.assert_array_equal(a, b)


def line(source, **kwargs):
    with pytest.raises(UserError) as caught:
        load_dataset(source, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unprepared_set_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = line("tfds:mnist")
    for part in ("tfds:mnist", str(tmp_path), "pip install tensorflow"):
        assert part in message


def test_unprepared_set_with_tensorflow_is_prepared(monkeypatch):
    calls = []
    builder = SimpleNamespace(
        info=SimpleNamespace(splits={}), download_and_prepare=lambda **kwargs: calls.append(kwargs)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow")
    tfds_source._prepare("mnist", builder)
    assert calls == [{"file_format": "array_record"}]


def test_other_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "tfds knows no set named mnits; did you mean mnist" in line("tfds:mnits")
    assert "cannot be opened" in line("tfds:mnist:9.9.9")
    assert "cannot be opened" in line("tfds:../mnist")
    assert "imdb_reviews is not a set of images with a label" in line("tfds:imdb_reviews")
    assert "cats_vs_dogs differ in size: set data.image_size" in line("tfds:cats_vs_dogs")


def test_set_prepared_in_a_sequential_format(tfds_dir, tmp_path, monkeypatch):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text((tfds_dir / "mnist" / "3.0.1" / name).read_text())
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    message = line("tfds:mnist")
    assert "tfrecord" in message and str(folder) in message


class Source(list):
    def __getitems__(self, keys):
        return [self[key] for key in keys]


def encode(value, shape=(6, 8, 3)):
    return cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tobytes()


def fake(monkeypatch, splits, image=None, version="1.0.0", **features):
    """Makes tfds have a set with these splits (lists of examples); returns the decoders used."""
    image = image or tfds.features.Image(shape=(None, None, 3))
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    columns = {"image": image, "label": label, **features}
    columns = tfds.features.FeaturesDict({k: v for k, v in columns.items() if v is not None})
    decoders = {}

    def as_data_source(split, decoders):
        decoders_used.update(decoders)
        return Source(splits[split])

    decoders_used = decoders
    builder = SimpleNamespace(
        info=SimpleNamespace(
            features=columns, splits=dict.fromkeys(splits), full_name=f"fake/{version}"
        ),
        as_data_source=as_data_source,
    )
    monkeypatch.setattr(tfds_source, "_make_builder", lambda name: builder)
    return decoders


def examples(count, base):
    return [{"image": encode(base + i, (6 + i, 8, 3)), "label": i % 2} for i in range(count)]


def test_own_validation_split_is_used_and_test_may_be_missing(monkeypatch):
    fake(monkeypatch, {"train": examples(10, 0), "validation": examples(4, 50), "extra": []})
    dataset = load_dataset("tfds:fake", image_size=(5, 5))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 10,
        "validation": 4,
    }
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (5, 5, 3)
    images, labels = dataset.splits["validation"].load(np.arange(4))
    assert images[:, 2, 2, 1].tolist() == [50, 51, 52, 53] and labels.tolist() == [0, 1, 0, 1]


def test_only_the_images_that_are_used_are_decoded(monkeypatch):
    mask = tfds.features.Image(shape=(None, None, 1))
    decoders = fake(monkeypatch, {"train": examples(10, 0)}, mask=mask)
    load_dataset("tfds:fake", image_size=(5, 5))
    assert set(decoders) == {"image", "mask"}


def test_damaged_record_is_named(monkeypatch):
    train = examples(20, 0)
    train[7]["image"] = train[7]["image"][:60]
    train[8]["image"] = b""
    fake(monkeypatch, {"train": train})
    assert line("tfds:fake", image_size=(5, 5)) == (
        "tfds:fake: 2 images cannot be read: tfds:fake train: image 7 is damaged; "
        "tfds:fake train: image 8 is damaged (to skip them: data.on_bad_image=skip)"
    )
    assert load_dataset("tfds:fake", image_size=(5, 5), on_bad_image="skip").skipped == 2


def test_withheld_labels_are_not_measured(monkeypatch, capsys):
    withheld = [example | {"label": -1} for example in examples(6, 90)]
    splits = {"train": examples(20, 0), "test": withheld}
    fake(monkeypatch, splits)
    assert list(load_dataset("tfds:fake", image_size=(5, 5)).splits) == ["train", "validation"]
    assert capsys.readouterr().err == (
        "tfds:fake test has no labels (all 6 are outside 0..1): it is not measured\n"
        "tfds:fake has no test split: validation stands in for it\n"
    )
    load_dataset("tfds:fake", image_size=(5, 5), validation=0)
    assert capsys.readouterr().err.endswith("has no test split: train stands in for it\n")
    splits["test"] = examples(4, 50) + withheld
    assert line("tfds:fake", image_size=(5, 5)) == (
        "data.source: tfds:fake test: 6 of 10 labels are outside 0..1, the first is -1"
    )
    for name in ("train", "validation"):
        fake(monkeypatch, {"train": examples(9, 0)} | {name: withheld})
        assert f"fake {name}: 6 of 6 labels are outside 0..1" in line(
            "tfds:fake", image_size=(5, 5)
        )
    fake(monkeypatch, {"train": examples(9, 0)[:-1] + [examples(3, 0)[0] | {"label": 2}]})
    assert "1 of 9 labels are outside 0..1, the first is 2" in line("tfds:fake", image_size=(5, 5))


def test_a_split_without_images_and_a_class_without_training_images(monkeypatch, capsys):
    fake(monkeypatch, {"train": examples(20, 0), "test": []})
    assert list(load_dataset("tfds:fake", image_size=(5, 5)).splits) == ["train", "validation"]
    assert "tfds:fake test holds no image: it is not used\n" in capsys.readouterr().err
    fake(monkeypatch, {"train": examples(20, 0)[::2], "test": examples(4, 0)})
    load_dataset("tfds:fake", image_size=(5, 5))
    assert capsys.readouterr().err == "WARNING: test has classes without training image: dog\n"
    fake(monkeypatch, {"train": []})
    assert line("tfds:fake", image_size=(5, 5)) == "data.source: tfds:fake train holds no image"


def test_another_version_is_another_set(monkeypatch):
    splits = {"train": examples(20, 0)}
    fake(monkeypatch, splits)
    dataset = load_dataset("tfds:fake", image_size=(5, 5))
    record = Record(dataset.class_names, dataset.version, dataset.files)
    again = load_dataset("tfds:fake", image_size=(5, 5), record=record)
    np.testing.assert_array_equal(
        again.splits["validation"].strata, dataset.splits["validation"].strata
    )
    fake(monkeypatch, splits, version="1.1.0")
    start = "tfds:fake is not what this run was trained on: "
    assert line("tfds:fake", record=record, image_size=(5, 5)) == (
        f"{start}it is fake/1.1.0, that was fake/1.0.0"
    )
    other = Record(("dog", "cat"), dataset.version, {})
    assert line("tfds:fake", record=other, image_size=(5, 5)) == (
        f"{start}its classes are in another order"
    )


def test_a_streamed_split_is_read_without_decoding(monkeypatch):
    ramp = np.linspace(0, 255, 80 * 96 * 3).reshape(80, 96, 3).astype(np.uint8)
    train = examples(20, 0)
    for example in train[:-1]:
        example["image"] = cv2.imencode(".jpg", ramp)[1].tobytes()
    fake(monkeypatch, {"train": train})
    decoded = []
    decode = tfds_records._decode
    monkeypatch.setattr(
        tfds_records, "_decode", lambda *a: decoded.append(cv2.imdecode) or decode(*a)
    )
    dataset = load_dataset("tfds:fake", image_size=(20, 24), resident_limit=0, validation=0)
    split = dataset.splits["train"]
    assert decoded == [] and split.strata.tolist() == [0, 1] * 10
    images, labels = split.load(np.arange(20))  # 1/4 of the JPEG files' size, and a PNG file
    assert labels.tolist() == [0, 1] * 10 and images.shape == (20, 20, 24, 3)
    expected = cv2.resize(ramp, (24, 20), interpolation=cv2.INTER_AREA)[..., ::-1]
    assert np.abs(images[:-1].astype(int) - expected).max() <= 6
    assert (images[-1] == 19).all()
    train[3]["image"] = train[3]["image"][:200]
    with pytest.raises(UserError, match="^tfds:fake train: image 3 is damaged"):
        split.load(np.array([3]))
    train[4]["label"] = 2
    with pytest.raises(UserError, match="the label of image 4 is 2, outside 0..1"):
        split.load(np.array([4]))


def test_labels_that_are_words(monkeypatch):
    fake(monkeypatch, {"train": []}, label=tfds.features.Text())
    assert line("tfds:fake").endswith("bbox and label; it has image (Image), label (Text)")


def test_images_that_cannot_be_used(monkeypatch):
    deep = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png")
    fake(monkeypatch, {"train": []}, image=deep)
    assert "only uint8 with 1 or 3 channels" in line("tfds:fake")
    fake(monkeypatch, {"train": []}, image=tfds.features.Image(shape=(8, 8, 4)))
    assert "4 channels" in line("tfds:fake")
    fake(monkeypatch, {"test": examples(4, 0)})
    assert "tfds:fake has no train split; it has test" in line("tfds:fake", image_size=(5, 5))


def test_grey_and_colour_on_request(monkeypatch):
    red = [
        {
            "image": cv2.imencode(".png", np.full((6, 8, 3), (0, 0, 200), np.uint8))[1].tobytes(),
            "label": i % 2,
        }
        for i in range(10)
    ]
    fake(monkeypatch, {"train": red}, image=tfds.features.Image(shape=(6, 8, 3)))
    colour = load_dataset("tfds:fake").splits["train"].load(np.array([0]))[0]
    assert colour[0, 0, 0].tolist() == [200, 0, 0]
    grey = load_dataset("tfds:fake", channels=1).splits["train"].load(np.array([0]))[0]
    assert grey.shape == (1, 6, 8, 1) and abs(int(grey[0, 0, 0, 0]) - 0.299 * 200) <= 1


def test_objects_as_of_bccd_voc_and_coco(monkeypatch, capsys):
    def example(base, objects):
        found = {
            "bbox": np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4),
            "label": np.array([label for label, _, _ in objects], np.int64),
            "is_crowd": np.array([crowd for _, _, crowd in objects], bool),
            "area": np.full(len(objects), 12, np.int64),
        }
        return {"image": encode(base, (20, 40, 3)), "objects": found}

    train = [
        example(5, [(1, (0.1, 0.25, 0.5, 0.75), False), (0, (0, 0, 1, 0.5), True)]),
        example(9, []),
        example(7, [(0, (0.5, 0.5, 1, 1), False)]),
    ]
    objects = tfds.features.Sequence(
        {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "is_crowd": np.bool_,
            "area": np.int64,
        }
    )
    splits = {"train": train, "validation": train[:1], "test": [example(1, [])] * 2}
    fake(monkeypatch, splits, label=None, objects=objects)
    dataset = load_dataset("tfds:fake", image_size=(40, 40), resize="pad")
    assert "tfds:fake test has no objects in 2 images" in capsys.readouterr().err
    assert dataset.class_names == ("cat", "dog") and not dataset.labelled
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    images, targets = dataset.splits["train"].load(np.arange(3))
    assert images[:, 20, 20, 0].tolist() == [5, 9, 7]
    np.testing.assert_allclose(targets.boxes[0], [[10, 12, 30, 20], [0, 10, 20, 30]], atol=1e-5)
    assert targets.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert targets.labels[0].tolist() == [1, 0] and targets.crowd[0].tolist() == [False, True]
    assert targets.area[0].tolist() == [12, 12]
    assert targets.placed[0].tolist() == [1, 1, 0, 10, 40, 20]
    splits["train"][2]["objects"]["label"][0] = 2
    assert "a label of image 2 is outside 0..1" in line("tfds:fake", image_size=(40, 40))


def test_masks_of_a_feature(monkeypatch):
    """As scene_parse150, whose masks have names, and oxford_iiit_pet, which has numbers."""
    mask = np.zeros((6, 8, 1), np.uint8)
    mask[:, 4:], mask[0] = 1, 255

    def example(base, values):
        return {
            "image": encode(base),
            "label": 0,
            "mask": cv2.imencode(".png", values)[1].tobytes(),
        }

    train = [example(9, mask), example(7, 2 * (mask == 1).astype(np.uint8))]
    splits = {"train": train, "validation": train[:1]}
    plain = tfds.features.Image(shape=(None, None, 1))
    decoders = fake(monkeypatch, splits, mask=plain)
    dataset = load_dataset("tfds:fake#mask", image_size=(3, 4), resize="stretch")
    assert set(decoders) == {"image", "mask"}
    assert dataset.class_names == ("0", "1", "2") and not dataset.labelled
    _, targets = dataset.splits["train"].load(np.arange(2))
    expected = [[[0, 0, 1, 1]] * 3, [[0, 0, 2, 2]] * 3]
    assert targets.classes.tolist() == expected
    named = tfds.features.LabeledImage(labels=["sky", "tree"], shape=(None, None, 1))
    fake(monkeypatch, {"train": train[:1], "validation": train[:1]}, mask=named)
    assert load_dataset("tfds:fake#mask", image_size=(6, 8)).class_names == ("sky", "tree")
    fake(monkeypatch, splits, mask=named)
    assert "the mask of image 1 has a pixel of class 2: there are classes 0..1" in line(
        "tfds:fake#mask", image_size=(6, 8)
    )
    fake(monkeypatch, splits | {"train": [example(9, mask[1:])]}, mask=plain)
    assert "the mask of image 0 is 8x5, and its image 8x6" in line(
        "tfds:fake#mask", image_size=(6, 8)
    )
    assert "no masks called 'masks' beside its images; there are mask" in line(
        "tfds:fake#masks", image_size=(6, 8)
    )
