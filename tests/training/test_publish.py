"""`flaxcnn push`: what is written is what timm and we read back, on a server in this process."""

import json

import hub_server
import huggingface_hub
import huggingface_hub.constants
import jax
import numpy as np
import pytest
import safetensors.numpy

from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.tasks.task import Setting
from flaxcnn.training import Config, publish
from flaxcnn.training.facts import Facts
from flaxcnn.training.inference import TrainedRun
from flaxcnn.training.parts import make_model, make_task
from flaxcnn.training.start import Start
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights import convert, hub
from flaxcnn.weights.preprocessing import Preprocessing

# huggingface_hub calls httpx by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def finished(tmp_path, name, shape, **kwargs) -> TrainedRun:
    """A run that has ended, with random variables."""
    config = Config()
    config.model.name, config.data.source = name, "folder:/home/me/secret/pets"
    config.model.kwargs.update(kwargs)
    classes = ["cat", "dog", "hen"]
    facts = Facts(classes, list(shape), {"train": 9}, 0, [0.5], [0.25], 1234, 10)
    facts.mean, facts.std = facts.mean * shape[2], facts.std * shape[2]
    task = make_task(config, Setting(tuple(classes), shape))
    model = make_model(config, task, None)
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)
    workdir = Workdir(tmp_path / name)
    workdir.path.mkdir()
    best = {"step": 20, "accuracy": 0.75, "loss": 0.5}
    workdir.write("result", {"split": "test", "accuracy": 0.5, "steps": 40, "best": best})
    return TrainedRun(config, facts, 20, model, task, variables, workdir)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_network_of_timm_is_written_in_its_names(tmp_path):
    run = finished(tmp_path, "mobilenetv2_050", (64, 96, 3), dropout=0.3)
    files = publish.make_files(run, "me/pets", "mit")
    config = json.loads(files["config.json"])
    assert config["architecture"] == "mobilenetv2_050" and config["num_classes"] == 3
    assert config["label_names"] == ["cat", "dog", "hen"] and "model_args" not in config
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [3, 64, 96] and cfg["mean"] == [0.5] * 3
    assert (cfg["crop_mode"], cfg["crop_pct"], cfg["license"]) == ("center", 1.0, "mit")
    tensors = safetensors.numpy.load(files["model.safetensors"])
    assert tensors["conv_stem.weight"].shape == (16, 3, 3, 3)  # timm's
    assert tensors["classifier.weight"].shape == (3, 1280)
    assert_same(convert("mobilenetv2_050", tensors, "timm", num_classes=3), run.variables)
    card = files["README.md"].decode()
    assert card.startswith("---\n") and 'license: "mit"' in card and "secret" not in card
    assert "| accuracy | 0.7500 |" in card and "0.5000 |" in card  # of the checkpoint it is
    assert 'timm.create_model("hf_hub:me/pets", pretrained=True)' in card


def test_grey_images_are_in_timms_words_and_read_as_the_run_has_read_them(tmp_path):
    run = finished(tmp_path, "mobilenetv2_050", (32, 32, 1))
    run.config.data.normalization, run.config.data.resize = "weights", "pad"
    reading = Preprocessing((32, 32), (0.4,), (0.2,), 0.9, "bicubic")
    run.facts.weights = Start("those of timm", preprocessing=reading).to_dict()
    files = publish.make_files(run, "me/grey")
    config = json.loads(files["config.json"])
    assert config["model_args"] == {"in_chans": 1}
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [1, 32, 32] and (cfg["mean"], cfg["std"]) == ([0.4], [0.2])
    assert (cfg["crop_mode"], cfg["crop_pct"]) == ("border", 0.9)
    assert cfg["interpolation"] == "bicubic"
    tensors = safetensors.numpy.load(files["model.safetensors"])
    assert tensors["conv_stem.weight"].shape == (16, 1, 3, 3)


# Of images of another size than the network's own a dense layer has another shape.
@pytest.mark.parametrize(
    ("name", "shape", "kwargs"),
    [
        ("digits_cnn", (8, 8, 1), {}),
        ("digits_cnn", (16, 16, 3), {}),
        ("mobilenetv2_050", (32, 32, 3), {"padding": "same"}),
    ],
)
def test_any_other_is_written_in_ours(tmp_path, name, shape, kwargs):
    run = finished(tmp_path, name, shape, **kwargs)
    files = publish.make_files(run, "me/digits")
    config = json.loads(files["config.json"])
    assert config["architecture"] == name
    assert config["flaxcnn"] == {"model": name, "layout": "flaxcnn", "step": 20}
    assert config.get("model_args", {}) == kwargs
    tensors = safetensors.numpy.load(files["model.safetensors"])
    assert "params/classifier/kernel" in tensors
    variables = convert(name, tensors, "flaxcnn", input_shape=shape, num_classes=3, **kwargs)
    assert_same(variables, run.variables)
    assert "timm" not in files["README.md"].decode()


def test_push_makes_the_repository_and_one_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    run = finished(tmp_path, "digits_cnn", (8, 8, 1))
    monkeypatch.setattr("flaxcnn.commands.push.load_run", lambda path, checkpoint: run)
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for step in (1, 2):
            assert main(["push", str(run.workdir.path), "me/digits", "--private"]) == 0
            assert len(server.repositories["me/digits"]) == step
        out = capsys.readouterr().out
        assert out.startswith("best checkpoint, step 20, in flaxcnn's names, as digits_cnn: http")
        files = publish.make_files(run, "me/digits")
        for name, content in files.items():
            assert hub.fetch("hf://me/digits", name).read_bytes() == content
        assert main(["push", str(run.workdir.path), "me"]) == 2
    (run.workdir.path / "result.json").unlink()
    with pytest.raises(UserError, match="digits_cnn is not finished: train it to its end first"):
        publish.make_files(run, "me/digits")
