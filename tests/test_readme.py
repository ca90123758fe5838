"""The README's commands are the ones that CI runs; what it and its two guides show works."""

import functools
import inspect
import re
import shlex
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxcnn
from flaxcnn.commands.main import make_parser
from flaxcnn.commands.train import parse
from flaxcnn.training import load_config, train
from flaxcnn.training.config_file import list_files, read_docstring
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.workdir import Workdir

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FILES = (ROOT / "README.md", ROOT / "docs" / "training.md", ROOT / "docs" / "networks.md")
GUIDES = "\n".join(file.read_text() for file in FILES)


def test_ci_runs_the_two_commands_of_the_first_screen():
    first_block = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first_block is not None
    commands = first_block[1].strip().split("\n")
    assert len(commands) == 2
    assert README[: first_block.end()].count("\n") < 24
    ci = (ROOT / ".ci" / "run").read_text().split("\n")
    assert [line for line in ci if line in commands] == commands


def find_example(*parts: str) -> str:
    """The one Python example that has all these `parts`."""
    examples = re.findall(r"```python\n(.*?)```", GUIDES, re.DOTALL)
    (example,) = [text for text in examples if all(part in text for part in parts)]
    return example


def test_the_python_example_runs():
    names: dict = {}
    exec(find_example("create_model", "logits ="), names)
    assert names["logits"].shape == (1, 10)


def test_the_examples_of_networks_and_weights_run(tmp_path, monkeypatch):
    names: dict = {}
    exec(find_example("create_model", "feature_info"), names)
    assert [stage.channels for stage in names["stages"]] == [512, 1024, 2048]
    images = jnp.zeros((1, 32, 32, 3))
    network = flaxcnn.create_model("resnet18")
    shapes = jax.eval_shape(lambda key: network.init(key, images, train=False), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    tensors = flaxcnn.weights.export("resnet18", variables, layout="torchvision")
    assert tensors["conv1.weight"].shape == (64, 3, 7, 7)
    save_file(tensors, tmp_path / "resnet18.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="1000 classes, and num_classes is 10"):
        exec(find_example("read_tensors", "convert"), names)
    assert names["variables"]["params"]["classifier"]["kernel"].shape == (512, 10)
    apply = functools.partial(names["model"].apply, names["variables"], train=False)
    logits = jax.eval_shape(apply, images)
    assert logits.shape == (1, 10)
    exec(find_example("convert", "export"), names)
    np.testing.assert_array_equal(names["tensors"]["conv1.weight"], tensors["conv1.weight"])


def test_the_example_of_a_notebook_trains(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("flaxcnn.train", lambda *args, **named: calls.append((args, named)))
    exec(find_example("flaxcnn.train("))
    ((config, workdir), named), *others = calls
    assert (config.epochs, config.data.source, workdir) == (10, "digits", "runs/ten")
    assert not others
    inspect.signature(train).bind(config, workdir, **named)


def test_the_whole_config_is_the_one_that_comes_with_flaxcnn():
    file = (ROOT / "configs" / "photos.py").read_text()
    assert file.endswith(find_example("folder:photos"))


def test_the_whole_config_fits_a_folder_of_photographs(tmp_path, monkeypatch):
    """All of a run but the compiled steps, which are only traced."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(16):
            photo = rng.integers(0, 256, (40 + index, 60, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / name / f"{index}.jpg"), photo)
    (tmp_path / "photos" / "owl" / "16.jpg").write_bytes(b"no image")
    (tmp_path / "my.py").write_text(find_example("folder:photos"))
    monkeypatch.chdir(tmp_path)
    experiment = make_experiment(load_config("my.py"), Workdir("."))
    facts = experiment.facts
    assert facts.class_names == ["cat", "dog", "owl"] and facts.image_shape == [150, 150, 3]
    assert set(facts.examples) == {"train", "validation", "test"} and facts.skipped == 1
    feeder, state = (
        experiment.feeder(experiment.dataset.splits["train"]),
        experiment.abstract_state(),
    )
    items = next(iter(feeder.feed(experiment.plan)))
    call = experiment.train_call(feeder)
    after, metrics = jax.eval_shape(call, state, feeder.arrays, items, 1.0)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "accuracy"} <= set(metrics)


@pytest.mark.parametrize("name", list_files())
def test_a_config_is_valid_and_says_how_to_run_it(name):
    load_config(name)
    command = "flaxcnn train" if name == "digits" else f"flaxcnn train {name}"
    lines = read_docstring(list_files()[name]).splitlines()
    assert [line for line in lines if line.strip().startswith(command)]


def test_every_command_is_one():
    """Names and options; what they do is tested in tests/commands/test_main.py."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDES, re.DOTALL))
    commands = re.findall(r"^flaxcnn (.*?)(?:  #.*)?$", blocks, re.MULTILINE)
    assert len(commands) > 6
    for command in commands:
        name, *arguments = shlex.split(command)
        if name in ("train", "estimate"):  # whose flags are the fields of the config
            parse(arguments)
        else:
            make_parser().parse_args([name, *arguments])
