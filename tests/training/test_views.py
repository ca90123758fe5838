"""Views and other resolutions in the engine: evaluation calls, a finished run, wrong settings."""

import json

import cv2
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from flaxcnn.data.augment import read_views
from flaxcnn.errors import UserError
from flaxcnn.layers import Conv
from flaxcnn.models.small_cnn import POOL, SmallCNN
from flaxcnn.tasks.classification import Classification
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, run
from flaxcnn.training.inference import load_run
from flaxcnn.training.sharding import Jit, Pmap
from flaxcnn.training.step import check_takes, make_eval_call, make_preprocess

VIEWS = [("shift", 1), ("flip",)]


class Network(nn.Module):
    """Takes any size."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = Conv(4, 5, padding="VALID", name="conv")(images)
        return nn.Dense(3, name="classifier")(nn.relu(x).mean((1, 2)))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(3, name="classifier")(images.reshape(len(images), -1))


def test_an_evaluation_call_averages_logits_alike_on_1_and_8_devices():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(32, dtype=np.int32).reshape(2, 16) % 3
    items = ((images, labels), np.ones((2, 16), np.float32))
    model, preprocess = Network(), make_preprocess([0.5], [0.25])
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
    call = make_eval_call(
        model,
        Classification(("a", "b", "c")),
        preprocess,
        lambda arrays, item: item,
        read_views([("flip",)]),
    )
    pixels = (images.reshape(-1, 8, 8, 1) / np.float32(255) - 0.5) / 0.25
    both = (model.apply(variables, x, train=False) for x in (pixels, pixels[:, :, ::-1]))
    logits = np.asarray(sum(both) / 2).reshape(2, 16, 3)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    for parallel in (Jit(jax.devices()[:1]), Jit(jax.devices()), Pmap(jax.devices())):
        metrics, examples, _ = parallel.compile_eval(call)(
            parallel.replicate(variables), (), parallel.split(items)
        )
        outputs = metrics | examples
        np.testing.assert_array_equal(outputs["label"], logits.argmax(-1))
        np.testing.assert_allclose(outputs["loss"], losses, rtol=1e-4)
        np.testing.assert_allclose(
            outputs["probability"], jax.nn.softmax(logits).max(-1), rtol=1e-4
        )


def make_config(**data) -> Config:
    return Config(
        model=ModelConfig("digits_cnn", {"global_pool": True}),
        data=DataConfig(batch_size=64, **data),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.003),
        epochs=2,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run with views, which is left as it is."""
    folder = tmp_path_factory.mktemp("views") / "run"
    run(make_config(views=VIEWS), folder)
    return folder


@pytest.fixture(scope="module")
def digits():
    """The test split as the sources have it: 360 images uint8 [8, 8, 1] in 0..255, labels."""
    from sklearn.model_selection import train_test_split

    ink, labels = load_digits(return_X_y=True)
    images = np.round(ink * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    _, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return images[np.sort(test)], labels[np.sort(test)]


def logits_of(trained, images):
    """The network's own logits of uint8 images, normalised by the run's constants in NumPy."""
    pixels = (np.float32(images) / 255 - trained.facts.mean) / trained.facts.std
    return np.asarray(trained.model.apply(trained.variables, np.float32(pixels), train=False))


def six_views(trained, images):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")

    def mirrored(x):
        return (logits_of(trained, x) + logits_of(trained, x[:, :, ::-1])) / 2

    shifted = mirrored(padded[:, :8, :8]) + mirrored(padded[:, 2:, 2:])
    return mirrored(images) / 2 + shifted / 4


def means(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"accuracy": (logits.argmax(-1) == labels).mean(), "loss": losses.mean()}


def assert_means(ours, logits, labels):
    expected = means(logits, labels)
    assert ours["accuracy"] == pytest.approx(float(expected["accuracy"]), abs=1e-9)
    assert ours["loss"] == pytest.approx(float(expected["loss"]), rel=1e-4)


def test_a_run_reports_with_its_views_and_the_plain_figures_beside(workdir, digits, capsys):
    result = json.loads((workdir / "result.json").read_text())
    trained = load_run(workdir, "last")
    images, labels = digits
    assert_means(result, six_views(trained, images), labels)
    assert_means(result["without_views"], logits_of(trained, images), labels)
    assert result["report"]["accuracy"] == pytest.approx(result["accuracy"])
    assert result["loss"] != pytest.approx(result["without_views"]["loss"], rel=1e-2)
    run(make_config(views=VIEWS), workdir)
    *_, plain, _, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"test accuracy {result['accuracy']:.4f} · 360 images · params ")
    assert plain == "without data.views: accuracy {accuracy:.4f} · loss {loss:.4f}".format(
        **result["without_views"]
    )


@pytest.mark.slow
def test_views_change_neither_training_nor_validation(workdir, tmp_path):
    plain = run(make_config(), tmp_path)
    assert plain is not None and "without_views" not in plain
    result = json.loads((workdir / "result.json").read_text())
    assert plain["params_sha256"] == result["params_sha256"]
    for name, value in result["without_views"].items():
        assert plain[name] == value
    rows = [(d / "metrics.jsonl").read_text().splitlines() for d in (workdir, tmp_path)]
    validation = [
        [{**json.loads(row), "time": None} for row in of_run if '"validation"' in row]
        for of_run in rows
    ]
    assert validation[0] and validation[0] == validation[1]


def test_evaluation_uses_the_configs_views_unless_it_is_given_others(workdir, digits):
    trained, (images, labels) = load_run(workdir, "last"), digits
    result = json.loads((workdir / "result.json").read_text())
    assert trained.evaluate("test").means["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert_means(trained.evaluate("test", views=()).means, logits_of(trained, images), labels)
    both = (logits_of(trained, images) + logits_of(trained, images[:, :, ::-1])) / 2
    assert_means(trained.evaluate("test", views=[("flip",)]).means, both, labels)


def test_an_image_is_judged_with_the_configs_views(workdir, digits):
    trained, images = load_run(workdir, "last"), digits[0][:7]
    expected = jax.nn.softmax(six_views(trained, images))
    np.testing.assert_allclose(trained.predictor(images), expected, atol=1e-5)


def test_another_resolution_keeps_the_runs_normalisation(workdir, digits):
    trained, (images, labels) = load_run(workdir, "last"), digits
    size = {"image_size": (12, 12), "views": ()}
    larger = np.stack([cv2.resize(image, (12, 12)) for image in images])[..., None]
    ours = trained.evaluate("test", **size)
    assert_means(ours.means, logits_of(trained, larger), labels)
    np.testing.assert_array_equal(ours.arrays["true_label"], labels)
    wide = np.stack([cv2.resize(image, (12, 8)) for image in images])[..., None]
    ours = trained.evaluate("test", image_size=(8, 12), views=(), resize="stretch")
    assert_means(ours.means, logits_of(trained, wide), labels)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"image_size": (3, 3)}, "image_size: the network cannot take 3x3x1 images: "),
        ({"image_size": (12,)}, "image_size must be (height, width), got (12,)"),
        ({"resize": "pad"}, "resize needs image_size: the run's images have their own size"),
        ({"views": [("crops", 3)]}, "views: the network cannot take 3x3x1 images: "),
        ({"views": [("crops", 9)]}, "views[0] ('crops', 9): 8x8 images have no 9x9 part"),
        ({"views": [("shift", 8)]}, "views[0] ('shift', 8): 8x8 images cannot be moved by 8"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_loaded(
    workdir, arguments, line, monkeypatch
):
    monkeypatch.setattr("flaxcnn.training.inference.reload_data", lambda *_: pytest.fail())
    with pytest.raises(UserError) as caught:
        load_run(workdir).evaluate("test", **arguments)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "taken", "refused", "reason"),
    [
        (Network(), (5, 9, 1), (8, 8, 3), "conv/kernel would have to be 5x5x3x4, and is 5x5x1x4"),
        (Flat(), (4, 16, 1), (9, 9, 1), "classifier/kernel would have to be 81x3, and is 64x3"),
        (SmallCNN(3, ((4, 3), POOL, POOL)), (9, 10, 1), (3, 8, 1), "; got 3x8x1"),
    ],
)
def test_what_a_network_takes_is_found_without_computing(model, taken, refused, reason):
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    check_takes(model, variables, taken, "field")
    shape = "x".join(map(str, refused))
    with pytest.raises(UserError, match=f"^field: the network cannot take {shape} images: .+") as e:
        check_takes(model, variables, refused, "field")
    assert str(e.value).endswith(reason) and "\n" not in str(e.value)


def test_a_flattening_network_is_refused_another_size_before_a_run_begins(tmp_path):
    def refused(line, **data):
        config = Config(model=ModelConfig("digits_cnn"), data=DataConfig(**data), epochs=1)
        with pytest.raises(UserError, match=line):
            run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("^data.views: the network cannot take 6x6x1 images: ", views=[("crops", 6)])
    refused("^data.augment: the network cannot take 4x4x1 images: ", augment=[("resize", 4, 4)])
    refused(r"^data.views\[0\] \('shift', 8\): 8x8 images cannot be moved", views=[("shift", 8)])


@pytest.mark.slow
def test_training_at_a_lower_resolution_and_testing_at_the_datas_own(workdir, tmp_path, digits):
    config = make_config(augment=[("resize", 6, 6), ("crop", 1, {"fill": 0})])
    result = run(config, tmp_path)
    assert result is not None and result["accuracy"] > 0.2
    unaugmented = json.loads((workdir / "result.json").read_text())
    assert result["params_sha256"] != unaugmented["params_sha256"]
    assert_means(result, logits_of(load_run(tmp_path, "last"), digits[0]), digits[1])
