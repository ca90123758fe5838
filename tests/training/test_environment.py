"""What is recorded and warned of, on made-up machines."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxcnn.training import environment as env

VERSION = importlib.metadata.version
PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda12_pjrt", "jax_cuda13_plugin")


def install(monkeypatch, **versions):
    """Packages of these versions ("_" for "-"; None: missing), the others as they are."""
    versions = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name):
        if versions.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or VERSION(name)

    # As jax 0.7.2 and flaxcnn declare it, in the words of their packages' metadata.
    declared = {
        "flaxcnn": ["jax!=0.10.2,!=0.11.0,!=0.11.1,>=0.7.2", 'jax[tpu]; extra == "tpu"'],
        "jax": [
            "jaxlib<=0.7.2,>=0.7.2",
            'libtpu==0.0.23; extra == "tpu"',
            'jax-cuda12-plugin[with-cuda]<=0.7.2,>=0.7.2; extra == "cuda12"',
            'jax-cuda12-plugin<=0.7.2,>=0.7.2; extra == "cuda12-local"',
        ],
        "jax-cuda12-plugin": ["jax-cuda12-pjrt==0.7.2"],
    }
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", declared.get)


@pytest.fixture
def plain_machine(monkeypatch):
    """A machine without accelerators, where nothing is forbidden or hidden."""
    monkeypatch.setattr(env.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(env, "_run", lambda *command: "")
    monkeypatch.setattr(env.os.path, "exists", lambda path: False)
    monkeypatch.setattr(type(jax.config), "jax_platforms", None)
    for name in list(os.environ):
        if re.match("TPU_|COLAB_|KAGGLE_|CUDA_VISIBLE_DEVICES", name):
            monkeypatch.delenv(name)
    install(monkeypatch, jax="0.7.2", jaxlib="0.7.2", **dict.fromkeys(PLUGINS))


def show_files(monkeypatch, *files):
    """Device files that appear."""

    def glob(pattern):
        return [file for file in files if Path(file).match(pattern)]

    monkeypatch.setattr(env.glob, "glob", glob)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.10.2", "wrong numbers"),
        ("0.11.0", "slows loops"),
        ("0.11.1", "slows loops"),
        ("0.7.1", "not one that flaxcnn supports"),
        ("0.11.1.dev20260801", "slows loops"),
    ],
)
def test_bad_jaxlib_is_a_warning_with_its_reason(monkeypatch, plain_machine, version, words):
    install(monkeypatch, jaxlib=version)
    (warning,) = env.find_warnings()
    assert version in warning and words in warning
    assert warning.endswith(": pip install -U 'jax!=0.10.2,!=0.11.0,!=0.11.1,>=0.7.2'")


@pytest.mark.parametrize("version", ["0.7.2", "0.10.1", "0.10.3", "0.11.2", "0.12.0.1", "1.0.0"])
def test_good_jaxlib_is_none(monkeypatch, plain_machine, version):
    install(monkeypatch, jaxlib=version)
    assert env.find_warnings() == []


def test_a_clone_that_is_not_installed_declares_nothing(monkeypatch, plain_machine):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert env.find_warnings() == []


def test_every_version_that_is_excluded_has_its_reason():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (jax_line,) = (x for x in pyproject["project"]["dependencies"] if re.match(r"jax\b", x))
    assert re.findall("!=([0-9.]+)", jax_line) == list(env.BAD_JAXLIB)


@pytest.mark.parametrize(
    ("file", "name", "plugin", "extra"),
    [
        ("/dev/nvidia0", "NVIDIA GPU", "jax_cuda12_plugin", "cuda12"),
        ("/dev/accel0", "TPU", "libtpu", "tpu"),
    ],
)
def test_unused_accelerator(monkeypatch, plain_machine, file, name, plugin, extra):
    assert env.unused_accelerator() is None
    show_files(monkeypatch, file)
    warning = env.unused_accelerator() or ""
    assert name in warning and file in warning
    assert warning.endswith(f": pip install 'jax[{extra}]==0.7.2'")
    assert env.find_warnings() == [warning]

    install(monkeypatch, **{plugin: "0.0.23" if plugin == "libtpu" else "0.7.2"})
    assert "did not start" in (env.unused_accelerator() or "")

    monkeypatch.setattr(type(jax.config), "jax_platforms", "cpu")
    assert "JAX_PLATFORMS=cpu forbids it" in (env.unused_accelerator() or "")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert env.unused_accelerator() is None


MISFITS = [
    ("/dev/nvidia0", {"jax_cuda12_plugin": "0.7.1"}, "jax-cuda12-plugin 0.7.1", "cuda12"),
    ("/dev/nvidia0", {"jax_cuda12_plugin": "0.7.2", "jax_cuda12_pjrt": "0.7.1"}, "pjrt 0.7.1", ""),
    ("/dev/accel0", {"libtpu": "0.0.21.1"}, "libtpu 0.0.21.1", "tpu"),
]


@pytest.mark.parametrize(("file", "versions", "words", "extra"), MISFITS)
def test_a_plugin_of_another_jax(monkeypatch, plain_machine, file, versions, words, extra):
    """It is named with the command that repairs it, whether its accelerator is there or not."""
    install(monkeypatch, jax="0.7.2", jaxlib="0.7.2", **dict.fromkeys(PLUGINS) | versions)
    (alone,) = env.find_warnings()
    assert words in alone and alone.endswith(f": pip install 'jax[{extra or 'cuda12'}]==0.7.2'")
    show_files(monkeypatch, file)
    (unused,) = env.find_warnings()
    assert file in unused and unused.endswith(f"JAX computes on the CPU. {alone}")


HOSTS = [
    ({"COLAB_RELEASE_TAG": "release-colab"}, "Runtime > Disconnect and delete runtime"),
    ({"COLAB_RELEASE_TAG": "", "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "stop Kaggle's session"),
]


@pytest.mark.parametrize(("variables", "words"), HOSTS)
def test_a_host_that_brings_jax_is_asked_for_its_own(monkeypatch, plain_machine, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for file, versions, misfit, _ in MISFITS:
        show_files(monkeypatch)
        install(monkeypatch, jax="0.7.2", jaxlib="0.7.2", **dict.fromkeys(PLUGINS) | versions)
        assert env.find_warnings() == []  # Colab's own libtpu is not the one that jax pins
        show_files(monkeypatch, file)
        (warning,) = env.find_warnings()
        assert misfit in warning and words in warning and "pip install" not in warning
    show_files(monkeypatch)
    install(monkeypatch, jaxlib="0.11.1")
    (warning,) = env.find_warnings()
    assert words in warning and "pip install" not in warning


def test_gpu_that_only_nvidia_smi_sees(monkeypatch, plain_machine):
    def run(*command):
        return "GPU 0: NVIDIA H200\n" if command == ("nvidia-smi", "-L") else ""

    monkeypatch.setattr(env, "_run", run)
    assert "(nvidia-smi)" in (env.unused_accelerator() or "")


def test_hidden_gpu(monkeypatch, plain_machine):
    show_files(monkeypatch, "/dev/nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in (env.unused_accelerator() or "")


def test_vfio_is_a_tpu_only_with_its_variables(monkeypatch, plain_machine):
    monkeypatch.setattr(env.os.path, "exists", lambda path: path == "/dev/vfio")
    assert env.unused_accelerator() is None
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    assert "TPU_ACCELERATOR_TYPE" in (env.unused_accelerator() or "")
    monkeypatch.setattr(env.os.path, "exists", lambda path: False)
    assert env.unused_accelerator() is None


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu sse2 avx avx2 fma", "x86_64-avx2 GenuineIntel-6-143"),
        ("x86_64", "fpu sse2 avx avx2 fma avx512f", "x86_64-avx512 GenuineIntel-6-143"),
        ("x86_64", "fpu sse2 avx", "x86_64 GenuineIntel-6-143"),
        ("AMD64", None, "x86_64"),
        ("aarch64", None, "aarch64"),
        ("arm64", None, "aarch64"),
    ],
)
def test_machine_type(monkeypatch, machine, flags, expected):
    model = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon\n"
    cpuinfo = f"{model}vmx flags\t: avx512f\nflags\t\t: {flags}\n" if flags else ""
    monkeypatch.setattr(env.platform, "machine", lambda: machine)
    monkeypatch.setattr(env, "_read_cpuinfo", lambda: cpuinfo)
    assert env.machine_type() == expected


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.delenv("NPROC", raising=False)
    assert env.count_threads() == 3
    monkeypatch.setenv("NPROC", "1")
    assert env.count_threads() == 1


def test_environment_is_json_and_complete(monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", "my run"])
    environment = env.environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["versions"]["jaxlib"] == VERSION("jaxlib")
    assert environment["versions"]["orbax-checkpoint"] == VERSION("orbax-checkpoint")
    assert environment["devices"] == {
        "platform": "cpu",
        "kind": "cpu",
        "count": 8,
        "process_count": 1,
    }
    assert environment["settings"]["jax_default_prng_impl"] == "threefry2x32"
    assert environment["variables"]["JAX_SOMETHING"] == "1"
    assert "device_count=8" in environment["variables"]["XLA_FLAGS"]
    assert environment["command"] == "train.py --workdir 'my run'"
    assert environment["threads"] == 2


def test_git_revision_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert env.environment()["git"] is None

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        command = ("git", *identity, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert env.environment()["git"] is None  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    revision = git("rev-parse", "HEAD")
    Path("untracked").write_text("1")
    assert env.environment()["git"] == {"revision": revision, "dirty": False}
    Path("a").write_text("2")
    assert env.environment()["git"] == {"revision": revision, "dirty": True}


def test_looking_loads_nothing_heavy():
    """The loop calls it before every run; versions come from metadata."""
    code = (
        "import sys; from flaxcnn.training import environment as e;"
        "e.environment(); e.find_warnings();"
        "heavy = {'orbax', 'tensorflow_datasets', 'matplotlib', 'grain', 'sklearn'};"
        "sys.exit(', '.join(heavy & {name.split('.')[0] for name in sys.modules}) or 0)"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
