"""Figures, losses and pictures of segmentation; a run of it from the masks to its answers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score

from flaxcnn.commands.main import main
from flaxcnn.data.splits import ArraySplit
from flaxcnn.data.targets import Mask
from flaxcnn.errors import UserError
from flaxcnn.models._network import Outputs
from flaxcnn.tasks.augment_pictures import draw_policy, sample_policy
from flaxcnn.tasks.segmentation import Segmentation, measure_confusion, median_frequency
from flaxcnn.tasks.segmentation_pictures import color_classes
from flaxcnn.tasks.task import Setting
from flaxcnn.training import (
    BalanceConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TaskConfig,
    train,
)
from flaxcnn.training.inference import load_run

NAMES = ("road", "tree", "sky")
# Of torch.nn.functional.cross_entropy(ignore_index=255), an image at a time: LOGITS with and
# without the weights 0.5, 2, 1, divided by the number of pixels that are known; OTHERS without.
LOSSES, WEIGHTED, OTHER_LOSSES = (
    (1.3616142272949219, 1.363812804222107),
    (1.5853610038757324, 1.5878996849060059),
    (1.1258271932601929, 1.304213047027588),
)
INDEX = np.arange(72).reshape(2, 3, 4, 3)
LOGITS, OTHERS = (2 * np.sin(INDEX * 0.7)).astype(np.float32), np.cos(INDEX * 1.3)
CLASSES = np.tile(np.array([0, 255, 2, 1], np.uint8), (2, 3, 1))


def test_losses_are_those_of_torch():
    mask = Mask(jnp.asarray(CLASSES))
    task = Segmentation(NAMES)
    np.testing.assert_allclose(task.losses(LOGITS, mask), LOSSES, rtol=1e-5)
    weighted = Segmentation(NAMES, (0.5, 2.0, 1.0))
    np.testing.assert_allclose(weighted.losses(LOGITS, mask), WEIGHTED, rtol=1e-5)
    np.testing.assert_allclose(weighted.measure(LOGITS, mask)["loss"], LOSSES, rtol=1e-5)
    both = Outputs(jnp.asarray(LOGITS), (jnp.asarray(OTHERS, jnp.float32),))
    expected = np.array(LOSSES) + 0.5 * np.array(OTHER_LOSSES)
    np.testing.assert_allclose(task.losses(both, mask), expected, rtol=1e-5)
    unknown = Mask(jnp.full((2, 3, 4), 255, jnp.uint8))
    measured = task.measure(LOGITS, unknown)
    assert not measured["loss"].any() and not measured["confusion"].any()


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.choice([0, 1, 2, 255], (5, 9, 7), p=[0.5, 0.3, 0.1, 0.1])
    logits = rng.normal(size=(5, 9, 7, 4)).astype(np.float32)  # class 3 never occurs
    names = (*NAMES, "car")
    task = Segmentation(names)
    counts = task.measure(logits, Mask(jnp.asarray(true, jnp.uint8)))["confusion"]
    predicted = logits.argmax(-1)
    for image in range(5):
        known = true[image] != 255
        pairs = true[image][known], predicted[image][known]
        expected = confusion_matrix(*pairs, labels=range(4))
        np.testing.assert_array_equal(counts[image], expected)
    known = true != 255
    figures = measure_confusion(np.asarray(counts).sum(axis=0), names)
    pairs = true[known], predicted[known]
    np.testing.assert_allclose(figures["pixel_accuracy"], (pairs[0] == pairs[1]).mean())
    scores = jaccard_score(*pairs, labels=range(3), average=None)
    recall = recall_score(*pairs, labels=range(3), average="macro")
    np.testing.assert_allclose(figures["mean_iou"], scores.mean())
    np.testing.assert_allclose(figures["mean_accuracy"], recall)
    weighted = jaccard_score(*pairs, labels=range(3), average="weighted")
    np.testing.assert_allclose(figures["frequency_weighted_iou"], weighted)
    assert [row["pixels"] for row in figures["classes"]] == [*np.bincount(pairs[0]), 0]


def test_median_frequency_by_hand():
    """Eigen and Fergus 2015, section 4.3: weights are median / frequency."""
    masks = np.full((2, 3, 4), 255, np.uint8)
    masks[0] = [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 3, 3]]
    masks[1] = [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 0]]
    split = ArraySplit(np.zeros((2, 3, 4, 1), np.uint8), Mask(masks))
    counts = Segmentation.count(split, 5)
    assert counts == {"pixels": [11, 6, 5, 2, 0], "pixels_of_images": [24, 24, 24, 12, 0]}
    frequency = np.array([11 / 24, 6 / 24, 5 / 24, 2 / 12])
    weights = median_frequency(**counts)
    np.testing.assert_allclose(weights[:4], (6 / 24 + 5 / 24) / 2 / frequency)
    assert weights[4] == 0
    setting = Setting(("a", "b", "c", "d", "e"), (3, 4, 1), counts=counts)
    task = Segmentation.make(setting, class_weights="median_frequency")
    np.testing.assert_allclose(task.class_weights, weights)
    with pytest.raises(UserError, match="kept in memory: see data.resident_limit"):
        Segmentation.make(Setting(NAMES, (3, 4, 1)), class_weights="median_frequency")
    with pytest.raises(UserError, match="must be one of none, median_frequency, got 'balanced'"):
        Segmentation.make(Setting(NAMES, (3, 4, 1)), class_weights="balanced")
    with pytest.raises(UserError, match="needs data with masks"):
        Segmentation.count(ArraySplit(split.images, np.zeros(2, np.int32)), 2)


def draw_blocks(folder, count, distinct):
    """Images in three colours with noise; the colour is the class. A row is not known."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng((distinct, i % distinct))
        classes = np.kron(rng.integers(0, 3, (2, 3)), np.ones((4, 4), int))
        image = np.array([30, 120, 220])[classes] + rng.integers(-20, 20, (8, 12))
        classes[0] = 255
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(classes.astype(np.uint8)).save(folder / "masks" / f"{i}.png")


def make_config(folder, task="segmentation", **data):
    weights = {"class_weights": "median_frequency"} if task == "segmentation" else {}
    return Config(
        model=ModelConfig(name="unet", kwargs={"features": (8, 16)}),
        task=TaskConfig(task, weights),
        data=DataConfig(source=f"masks:{folder}", batch_size=16, eval_batch_size=8, **data),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.02, accumulate=2),
        parallel="pmap",
        epochs=50,
        steps_per_call=1,
    )


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Four images, each on four of sixteen places of a batch."""
    folder = tmp_path_factory.mktemp("blocks")
    for split, count, distinct in (("train", 16, 4), ("val", 8, 8), ("test", 11, 11)):
        draw_blocks(folder / split, count, distinct)
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES}))
    return folder


@pytest.fixture(scope="module")
def run(blocks, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "blocks"
    train(make_config(blocks), workdir)
    return workdir


def test_four_images_are_learnt_by_heart(run):
    """By 8 devices, in micro-batches."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[0] > 0.5 and losses[-1] < 0.02
    assert (run / "predictions.png").exists()
    counts = json.loads((run / "run.json").read_text())["counts"]
    assert sum(counts["pixels"]) == 16 * 7 * 12


def test_evaluate_is_exact_over_a_split_that_no_batch_divides(run, capsys):
    measured = load_run(run).evaluate("test")
    true, predicted = measured.arrays["true_classes"], measured.arrays["classes"]
    assert true.shape == (11, 8, 12) and (true == 255).sum() == 11 * 12
    known = true != 255
    counts = confusion_matrix(true[known], predicted[known], labels=range(3))
    assert measured.report == {"images": 11, **measure_confusion(counts, NAMES)}
    assert (measured.confusion == counts).all()
    assert measured.report["mean_iou"] > 0.5
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_iou"] == measured.report["mean_iou"]
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    assert "frequency weighted IoU" in out and "test mean_iou" in out


def test_predict_answers_in_the_pixels_of_the_file(run, blocks, tmp_path, capsys):
    photo = np.asarray(Image.open(blocks / "test" / "images" / "3.png"))
    large = photo.repeat(2, axis=0).repeat(2, axis=1)
    sides = np.pad(large, ((0, 0), (6, 6)), constant_values=120)  # cut off by "crop"
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    Image.fromarray(sides).save(tmp_path / "one" / "photo.png")
    turned = Image.fromarray(large).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right again
    turned.save(tmp_path / "other" / "photo.png", exif=exif)
    out = tmp_path / "out"
    command = ["predict", "--workdir", str(run), "--resize", "crop", "--json", "--out", str(out)]
    assert main([*command, str(tmp_path / "one"), str(tmp_path / "other")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "predictions.json").read_text())
    assert [entry["picture"] for entry in told] == ["photo.png", "photo-2.png"]
    assert told[0]["top"] == told[1]["top"] and set(told[0]["top"][0]) == {"class", "share"}
    predictor = load_run(run).predictor
    seen = predictor(photo[None, :, :, None])["classes"][0].repeat(2, axis=0).repeat(2, axis=1)
    files = [tmp_path / "one" / "photo.png", tmp_path / "other" / "photo.png"]
    (_, first), (_, second) = predictor.predict(files, "crop")
    np.testing.assert_array_equal(first["classes"][:, 6:-6], seen)
    assert (first["classes"][:, :6] == 255).all() and (first["classes"][:, -6:] == 255).all()
    np.testing.assert_array_equal(second["classes"], seen)
    assert [entry["mask"] for entry in told] == ["masks/photo.png", "masks/photo-2.png"]
    mask = Image.open(out / "masks" / "photo.png")
    assert mask.mode == "P" and mask.getpalette()[:6] == [128, 0, 0, 0, 128, 0]  # VOC's colours
    np.testing.assert_array_equal(np.asarray(mask), first["classes"])
    drawn = np.asarray(Image.open(out / "photo.png"))
    assert drawn.shape == (16, 36, 3)
    np.testing.assert_array_equal(drawn[:, :6], sides[:, :6, None].repeat(3, axis=2))
    assert (drawn[:, 6:-6] != sides[:, 6:-6, None]).any(axis=-1).all()
    assert main(["predict", "--workdir", str(run), "--resize", "pad", str(files[0])]) == 0
    assert "%  " in capsys.readouterr().out


def test_a_mask_is_drawn_where_augmentation_moves_it(blocks, tmp_path):
    """A grey image, and what is drawn over it is the mirror image of what was drawn over it."""
    grey, classes = np.full((1, 8, 12, 3), 100, np.uint8), np.arange(96, dtype=np.uint8)
    classes = classes.reshape(1, 8, 12) // 20
    plain, flipped = (sample_policy([("flip", p)], grey, 1, classes=classes)[0] for p in (0.0, 1.0))
    np.testing.assert_array_equal(flipped, plain[:, ::-1])
    np.testing.assert_allclose(255 * plain, color_classes(grey[0], classes[0]), atol=1)
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) == 5
    files = [str(blocks / "test" / kind / "0.png") for kind in ("images", "masks")]
    draw_policy([("flip",), ("rotate", 20)], files[:1], masks=files[1:], samples=2)
    with pytest.raises(UserError, match="cannot take boxes, keypoints or masks along"):
        draw_policy([("mixup",)], files[:1], masks=files[1:], samples=2)
    with pytest.raises(UserError, match="1 masks for 2 images"):
        draw_policy([("flip",)], files, masks=files[1:], samples=2)


def test_mistakes_in_configs(blocks, tmp_path):
    for config, match in (
        (make_config(blocks, task="classification"), "classification needs labels, and masks:"),
        (make_config(blocks, balance=BalanceConfig(sampler="sqrt")), "data.balance goes by"),
        (make_config(blocks, augment_classes=("sky",)), "data.augment_classes"),
        (make_config(blocks, augment=(("mixup",),)), "boxes, keypoints or masks"),
    ):
        with pytest.raises(UserError, match=match):
            train(config, tmp_path / "run")
