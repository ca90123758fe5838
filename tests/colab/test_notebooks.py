"""What can be said of the notebooks without running them; test_execution.py runs them."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import jax
import nbformat
import pytest
from notebooks import ROOT, SOURCES, cells, find_cell, jupytext, load_build
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flaxcnn.models
from flaxcnn.training import environment as env

each = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
ACCELERATORS = {  # the others begin on a CPU runtime
    "3_cifar10": ("TPU", "V5E1"),
    "6_detection_segmentation": ("GPU", "T4"),
}
SMALL = {"importlib-resources", "ml-collections", "tensorboardx"}  # what Colab lacks
HEADLESS = {"opencv-python-headless"}  # and its TPU runtime besides


@each
def test_the_notebook_is_made_from_its_py(source):
    text = source.with_suffix(".ipynb").read_text()
    assert text == load_build().build(source), "run python colab/build.py"
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@each
def test_what_a_reader_sees_first(source):
    first = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells[0].source
    assert first.startswith("# ") and "**What you will see:**" in first and "**Runtime:**" in first
    address = f"github.com/{load_build().REPOSITORY}/blob/main/colab/{source.stem}.ipynb"
    colab = address.replace("github.com", "https://colab.research.google.com/github")
    assert f"(https://colab.research.google.com/assets/colab-badge.svg)]({colab})" in first
    kaggle = f"(https://kaggle.com/kernels/welcome?src=https://{address})" in first
    assert kaggle == (source.stem == "3_cifar10")  # where several chips are of use


@each
def test_the_runtime_survives_tools(source):
    """From .ipynb to .py and back, as an editor that pairs them would do."""
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    back = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")
    for metadata in (notebook.metadata, back.metadata):
        assert metadata["kernelspec"]["name"] == "python3"
        chosen = metadata.get("accelerator"), metadata["colab"].get("gpuType")
        assert chosen == ACCELERATORS.get(source.stem, (None, None))


@each
def test_all_install_in_the_same_way(source):
    assert "unused_accelerator" in source.read_text()
    for words in ("def install(", "problem := unused_accelerator()", "def prepare("):
        with_them = [other for other in SOURCES if words in other.read_text()]
        if source in with_them:
            found = (find_cell(other, words) for other in (with_them[0], source))
            called = r'^prepare\(".*"\)$'
            first, cell = (re.sub(called, "", code, flags=re.M).rstrip() for code in found)
            assert cell == first
    assert find_cell(source, "def install(") == cells(source)[0]
    assert not re.search(r"pip install|setup_tpu|tensorflow-tpu|^[!%]", source.read_text(), re.M)


@each
def test_code_fits_the_oldest_python_and_says_what_quick_is(source):
    ast.parse(source.read_text(), feature_version=(3, 11))
    assert len(re.findall(r"\bQUICK\b", source.read_text())) > 1


def test_the_tour_visits_every_family():
    (tour,) = [source for source in SOURCES if source.stem == "2_zoo_tour"]
    visited = re.search(r"^FAMILIES = \[.*?\n(.*?)^\]", tour.read_text(), re.M | re.S)
    assert visited is not None
    names = ast.literal_eval(f"[{visited[1]}]")
    public = {name: part for name, part in vars(flaxcnn.models).items() if name[0] != "_"}
    families = {name: part.VARIANTS for name, part in public.items() if hasattr(part, "VARIANTS")}
    families = {
        name: variants
        for name, variants in families.items()
        if any(v.task == "classification" for v in variants.values())
    }
    for family, variants in families.items():
        assert len(set(names) & variants.keys()) == 1, family
    assert len(names) == len(families) > 20


def read_pins(machine: str, shared: Path) -> dict[str, str]:
    file = shared / "reference" / "colab" / f"pip-freeze.{machine}txt"
    listed = dict(re.findall(r"^([\w.-]+)(?:==| @ )(\S+)$", file.read_text(), re.MULTILINE))
    return {canonicalize_name(name): version for name, version in listed.items()}


@pytest.fixture
def runtime(monkeypatch):
    """Makes the packages those of a list; what the cell runs is kept, not run."""

    def become(pins: dict[str, str]) -> list[list[str]]:
        def version(name):
            if canonicalize_name(name) not in pins:
                raise importlib.metadata.PackageNotFoundError(name)
            return pins[canonicalize_name(name)]

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        optional = [
            f'{line.replace(";", " and ")}; extra == "{extra}"'
            for extra, lines in project["optional-dependencies"].items()
            for line in lines
        ]
        declared = {"flaxcnn": project["dependencies"] + optional}
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", declared.get)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        commands: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", lambda command, **named: commands.append(command))
        return commands

    return become


@pytest.mark.parametrize("machine", ["tpu.", "gpu.", ""])
def test_only_what_colab_lacks_is_installed(machine, shared, runtime):
    pins = read_pins(machine, shared)
    assert {"jax", "jaxlib", "numpy", "torch"} <= pins.keys()
    commands = runtime(pins)
    names: dict = {}
    exec(find_cell(SOURCES[0], "def install("), names)
    (_, *source), (_, *missing) = commands
    start = ["-m", "pip", "install", "--quiet", "--no-deps"]
    assert source == [*start, names["SOURCE"]] and missing[:5] == start
    assert names["SOURCE"].startswith(f"https://github.com/{load_build().REPOSITORY}/")
    found = {canonicalize_name(Requirement(line).name) for line in missing[5:]}
    assert found == (SMALL | HEADLESS if machine == "tpu." else SMALL)


def test_a_package_of_the_runtime_that_does_not_fit_is_an_error(shared, runtime):
    commands = runtime(read_pins("tpu.", shared) | {"jax": "0.10.2"})
    with pytest.raises(RuntimeError, match=r"jax 0\.10\.2 is here and flaxcnn needs .*new runtime"):
        exec(find_cell(SOURCES[0], "def install("), {})
    assert len(commands) == 1  # flaxcnn itself


@pytest.mark.parametrize("present", [True, False])
def test_tensorflow_stays_out_of_the_runtime(monkeypatch, present):
    """It prepares a set in a process of its own, from a folder of its own where Colab has none."""
    builder = types.SimpleNamespace(info=types.SimpleNamespace(splits={}))
    tfds = types.SimpleNamespace(builder=lambda name, data_dir: builder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: present or None)
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **named: calls.append((command, named)))
    names = {"os": os, "sys": sys, "importlib": importlib, "subprocess": subprocess}
    exec(find_cell(SOURCES[0], "def prepare("), names)
    *installing, (command, named) = calls
    assert command[:2] == [sys.executable, "-c"] and "download_and_prepare" in command[2]
    assert named["env"]["CUDA_VISIBLE_DEVICES"] == "-1" and named["check"]
    if present:
        assert not installing and named["env"].get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    else:
        (((*_, target, folder, package), _),) = installing
        assert (target, package) == ("--target", "tensorflow-cpu")
        assert named["env"]["PYTHONPATH"] == folder

    builder.info.splits = {"train": 60_000}
    calls.clear()
    exec(find_cell(SOURCES[0], "def prepare("), names)
    assert not calls


def test_what_is_there_is_not_installed_again(monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda *command, **named: calls.append(command))
    exec(find_cell(SOURCES[0], "def install("), {})
    assert not calls


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("COLAB_TPU_1VM", "1", "a TPU is here (COLAB_TPU_1VM=1) and JAX computes on the CPU"),
        ("COLAB_GPU", "1", "an NVIDIA GPU is here (COLAB_GPU=1) and JAX computes on the CPU"),
        ("COLAB_GPU", "0", ""),  # a CPU runtime
        ("COLAB_TPU_1VM", "", ""),
    ],
)
def test_an_accelerator_that_is_not_used_stops_the_notebook(
    monkeypatch, capsys, variable, value, words
):
    """On a runtime that shows no device file: what Colab says of itself counts."""
    monkeypatch.setattr(env.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(env, "_run", lambda *command: "")
    monkeypatch.setattr(type(jax.config), "jax_platforms", None)
    monkeypatch.setattr(env, "_version", lambda package: None)
    for name in [name for name in os.environ if re.match("TPU_|COLAB_|KAGGLE_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv(variable, value)
    cell = find_cell(SOURCES[0], "problem := unused_accelerator()")
    if words:
        with pytest.raises(RuntimeError) as stopped:
            exec(cell, {})
        assert str(stopped.value).startswith(words) and "\n" not in str(stopped.value)
        assert "Runtime > Disconnect and delete runtime" in str(stopped.value)
    else:
        exec(cell, {})
    assert "jax 0." in capsys.readouterr().out
