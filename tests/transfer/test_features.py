"""Features of a frozen base: what is learnt on them is what is learnt on images."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from flaxcnn.data.splits import ArraySplit
from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm
from flaxcnn.models._network import Network
from flaxcnn.training import features as module
from flaxcnn.training import linear_probe, train
from flaxcnn.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.experiment import open_experiment
from flaxcnn.training.features import Features
from flaxcnn.training.freeze import Freeze, overlay
from flaxcnn.training.inference import load_run
from flaxcnn.training.step import make_preprocess

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flaxcnn" / "features"


@pytest.mark.slow
def test_a_run_on_features_is_the_run_on_images(tmp_path, folder, monkeypatch, capsys):
    """BatchNorm in the base, dropout behind the first dense layer; stopped and resumed, too."""
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *args: None)
    config = Config(
        model=ModelConfig("digits_cnn"),
        data=DataConfig(batch_size=320, eval_batch_size=360),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01, freeze="conv.*"),
        epochs=2,
        steps_per_call=1,
    )
    slow = train(config, tmp_path / "slow")
    quick_config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, cache_features=True)
    )
    calls = iter(range(100))
    assert train(quick_config, tmp_path / "quick", stop=lambda: next(calls) == 4) is None
    assert "features of 1293 train images: " in capsys.readouterr().out
    quick = train(quick_config, tmp_path / "quick")
    said = capsys.readouterr().out
    assert f"features of 1293 train images: from {folder}" in said
    assert slow is not None and quick is not None
    assert quick["loss"] == pytest.approx(slow["loss"], rel=1e-5)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("slow", "quick")
    ]
    losses = [[row["loss"] for row in one if row["split"] == "train"] for one in rows]
    assert len(losses[0]) == 8 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    runs = [load_run(tmp_path / name) for name in ("slow", "quick")]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        *(run.variables for run in runs),
    )
    # What evaluates a run looks at images.
    assert runs[1].evaluate("test").means["loss"] == pytest.approx(quick["loss"], rel=1e-5)


class Net(Network):
    """A base with BatchNorm, perhaps noise, and perhaps a way around the head's input."""

    noise: float = 0.0
    around: bool = False

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Dense(3, name="base1")(images.mean((1, 2)))
        x = BatchNorm(not train, 0.9, name="base_bn")(x)
        x = nn.Dropout(self.noise, deterministic=not train, name="base_dropout")(x)
        x = nn.relu(nn.Dense(4, name="base2")(x))
        y = nn.Dense(4, name="fc1")(x)
        y = nn.Dropout(0.5, deterministic=not train, name="fc1_dropout")(y)
        y = x + y if self.around else y
        return nn.Dense(self.num_classes, name="classifier")(y)


def make_features(freeze="base.*", **kwargs):
    model = Net(num_classes=2, **kwargs)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    return Features(model, variables, Freeze(freeze), make_preprocess([0.5], [0.25]), SHAPE, {})


def make_split(count=3):
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    return ArraySplit(images, np.zeros(count, np.int32))


def test_the_network_is_cut_before_what_is_trained_or_noisy():
    assert make_features().cut == "fc1"
    assert make_features("base.*|fc1|classifier/bias").cut == "fc1_dropout"
    assert make_features(noise=0.5).cut == "base_dropout"
    with pytest.raises(UserError, match=r"cache_features: nothing that is frozen comes before"):
        make_features("(?!base1).*")
    with pytest.raises(UserError, match="fc1 is the first that is trained, and what it is given"):
        make_features(around=True).of(make_split(), "train")


def test_what_an_image_is_given_are_the_inputs_of_the_first_trained_layer(folder):
    """Against NumPy."""
    features, split = make_features(), make_split(33)  # more than a batch
    pixels = (split.images / 255 - 0.5) / 0.25
    base1, base2 = (features._variables["params"][name] for name in ("base1", "base2"))
    hidden = pixels.mean((1, 2)) @ base1["kernel"] + base1["bias"]
    hidden = hidden / np.sqrt(1 + 1e-5)  # BatchNorm's, with a mean of 0 and a variance of 1
    expected = np.maximum(hidden @ base2["kernel"] + base2["bias"], 0)
    found = features.of(split, "train")
    assert found.images.dtype == np.float32 and found.targets is split.targets
    np.testing.assert_allclose(found.images, expected, rtol=1e-4, atol=1e-5)
    assert len(list(folder.iterdir())) == 1


def test_the_gradient_is_the_one_on_images():
    """With the same dropout, and BatchNorm by its averages; it takes no image."""
    features, split = make_features(), make_split(4)
    variables, freeze = features._variables, Freeze("base.*")

    def loss(head, apply, x):
        params = overlay(variables["params"], head)
        with freeze.hold_statistics():
            outputs, _ = apply(
                {**variables, "params": params},
                x,
                train=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats"],
            )
        return (outputs**2).sum()

    head = freeze.trained(variables["params"])
    images = make_preprocess([0.5], [0.25])(jnp.asarray(split.images))
    slow = jax.value_and_grad(loss)(head, features._model.apply, images)
    x = jnp.asarray(features.of(split, "train").images)
    quick = jax.value_and_grad(loss)(head, features.apply, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slow, quick)
    assert np.abs(quick[1]["fc1"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("fault", ["flipped", "cut", "another", "longer"])
def test_a_file_that_is_not_what_it_was_is_made_again(folder, capsys, fault):
    expected = make_features().of(make_split(), "train").images
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    if fault == "flipped":
        content[-1] ^= 1
    elif fault == "cut":
        content = content[:-5]
    elif fault == "another":  # of other pixels, under this one's name
        make_features().of(make_split(5), "train")
        (other,) = set(folder.iterdir()) - {file}
        content = other.read_bytes()
        other.unlink()
    else:
        module.write(file, file.stem, np.zeros((4, 4), np.float32))
        content = file.read_bytes()
    file.write_bytes(content)
    capsys.readouterr()
    np.testing.assert_array_equal(make_features().of(make_split(), "train").images, expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file} is ") and lines[0].endswith("the features are made again")
    assert len(lines) == 2
    make_features().of(make_split(), "train")
    assert capsys.readouterr().out == f"features of 3 train images: from {file}\n"


def test_another_base_or_normalization_has_another_file_and_another_head_has_not(folder):
    split = make_split()

    def count(change=lambda path, x: x, **described):
        model = Net(num_classes=2)
        variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
        preprocess = make_preprocess([0.5], [0.25])
        variables = jax.tree_util.tree_map_with_path(change, variables)
        freeze = Freeze("base.*")
        Features(model, variables, freeze, preprocess, SHAPE, described).of(split, "train")
        return len(list(folder.iterdir()))

    def plus_one(name):
        return lambda path, x: x + (name in jax.tree_util.keystr(path))

    assert count() == 1
    assert count(plus_one("base1")) == 2
    assert count(normalization=[0.4]) == 3
    split.images[0, 0, 0, 0] += 1
    assert count() == 4
    assert count(plus_one("classifier"), normalization=[]) == count(normalization=[]) == 5


def test_a_full_disk_is_one_line(folder, monkeypatch, capsys):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write", fail)
    assert make_features().of(make_split(), "train").images.shape == (3, 4)
    assert "they are not kept: [Errno 28] No space left on device\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.freeze": ""}, "data.cache_features needs optimizer.freeze"),
        ({"data.augment": (("flip",),)}, "data.augment changes images, and data.cache_features"),
        ({"data.views": (("flip",),)}, "data.views changes images, and data.cache_features"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    from flaxcnn.training.config_fields import change_fields

    config = Config(data=DataConfig(cache_features=True))
    config.optimizer.freeze = "conv.*"
    with pytest.raises(UserError, match=message):
        validate(change_fields(normalize(config), changes))


@pytest.mark.slow
def test_a_linear_probe_is_scikit_learns(monkeypatch):
    """Of features that NumPy can compute: those of a dense layer on pixels."""
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs=ConfigDict({"hidden": (64, 32)})),
        data=DataConfig(normalization=((0.0,), (1.0,))),
        optimizer=OptimizerConfig(freeze="fc1"),
    )
    probe = linear_probe(config, (1e-4, 0.01, 0.1))
    experiment = open_experiment(normalize(config))
    layer = jax.device_get(experiment.initial_state().params["fc1"])
    arrays = {}
    for name, split in experiment.dataset.splits.items():
        images, labels = split.load(np.arange(len(split)))
        pixels = images.reshape(len(images), -1) / 255
        arrays[name] = np.maximum(pixels @ layer["kernel"] + layer["bias"], 0), labels
    scaler = StandardScaler().fit(arrays["train"][0])
    model = LogisticRegression(C=probe.strength, max_iter=1000)
    model.fit(scaler.transform(arrays["train"][0]), arrays["train"][1])
    for name, (x, labels) in arrays.items():
        expected = model.score(scaler.transform(x), labels)
        assert probe.accuracy[name] == pytest.approx(expected, abs=0.01)
    assert probe.strength > 1e-4 and probe.accuracy["test"] > 0.9
