"""What a user has after `pip install`, in an empty folder and without the clone."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROGRAM = """
from typing import Any

import flax.linen as nn
import flaxcnn
import jax
import jax.numpy as jnp
import numpy as np
from flaxcnn.layers import BatchNorm, Conv, max_pool
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, load_config


class Net(nn.Module):
    features: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.features, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(BatchNorm(use_running_average=not train, name="bn")(x))
        return max_pool(x, (2, 2), strides=(2, 2))


model: nn.Module = flaxcnn.create_model("resnet18", dtype=jnp.bfloat16)
images = jnp.zeros((1, 32, 32, 3))
variables = model.init(jax.random.key(0), images, train=False)
logits = model.apply(variables, images, train=False)
strides: list[int] = [feature.stride for feature in flaxcnn.feature_info(model, (32, 32, 3))]
own = Net(features=4).init(jax.random.key(0), images, train=True)
tensors: dict[str, np.ndarray] = flaxcnn.weights.export("resnet18", variables, layout="torchvision")
variables = flaxcnn.weights.convert("resnet18", tensors, layout="torchvision")
config: Config = load_config("digits")
config = Config(
    model=ModelConfig(name="digits_cnn"),
    data=DataConfig(source="digits", augment=(("flip",), ("rotate", 15))),
    optimizer=OptimizerConfig(name="adam", learning_rate=0.003),
)


def show(step: int, row: dict[str, float]) -> bool:
    return step > 100 and row["accuracy"] < 0.5


result: dict[str, Any] | None
result = flaxcnn.train(config, "runs/x", on_validation=show, stop=lambda: False)
result = flaxcnn.train("digits", "runs/y")
"""
MISTAKES = """
import flaxcnn
from flaxcnn.training import Config

flaxcnn.train(3, "runs/x")  # line 5
Config(epoch=3)
flaxcnn.trane("digits", "runs/x")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ROOT]
    built = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("needs a package registry, for hatchling")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A virtual environment that has the wheel; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.fixture
def run(installed, command_env, tmp_path):
    """Runs a command of the environment in an empty folder: (name, ...) -> CompletedProcess."""
    env = {key: value for key, value in command_env.items() if key != "PYTHONPATH"}
    env["PATH"] = f"{installed / 'bin'}:{os.environ['PATH']}"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_the_wheel_carries_what_is_not_code(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"flaxcnn/py.typed", "flaxcnn/golden/digits.json"} < names
    configs = {f"flaxcnn/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.py")}
    assert len(configs) > 15 and configs < names
    assert not [name for name in names if name.startswith(("configs", "tests", "train.py"))]


def test_digits_is_trained_in_an_empty_folder(run, installed, tmp_path):
    finished = run("flaxcnn", "train", "digits", "--config.epochs=2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1].endswith(" · runs/digits")
    assert json.loads((tmp_path / "runs/digits/result.json").read_text())["accuracy"] > 0.3
    command = json.loads((tmp_path / "runs/digits/environment.json").read_text())[-1]["command"]
    assert command.startswith(str(installed))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_every_command_finds_what_comes_with_flaxcnn(run, installed):
    where = run("python", "-c", "import flaxcnn; print(flaxcnn.__file__)")
    assert where.stdout.startswith(str(installed))
    listed = run("python", "-m", "flaxcnn", "list", "configs")
    assert "flaxcnn train mnist_cnn " in listed.stdout
    for arguments, line in [
        (["train", "mnist_cnn", "--config.epochs=0"], "epochs must be at least 1, got 0"),
        (
            ["train", "photos"],
            "data.source: there is no folder photos; --config.data.source=folder",
        ),
        (["study", "loss", "--jobs", "0"], "--jobs must be in 1.."),
    ]:
        finished = run("flaxcnn", *arguments)
        assert finished.returncode == 2
        *warned, said = finished.stderr.splitlines()
        assert said.startswith(f"flaxcnn {arguments[0]}: {line}")
        assert all(text.startswith("WARNING: ") for text in warned)  # of this installation


def test_types_are_checked_in_a_users_program(run, installed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(installed / "bin" / "python")]
    checked = run(*command, "--outputjson", "program.py", "mistakes.py")
    if not checked.stdout.startswith("{"):
        pytest.skip(f"pyright could not be started: {checked.stderr.strip()[-200:]}")
    errors = [
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in json.loads(checked.stdout)["generalDiagnostics"]
    ]
    assert sorted(errors) == [("mistakes.py", 5), ("mistakes.py", 6), ("mistakes.py", 7)], errors
