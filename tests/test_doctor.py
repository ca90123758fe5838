"""The doctor on made-up machines, and its own sums against broken ones."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxcnn import doctor

VERSION = importlib.metadata.version


def install_jaxlib(monkeypatch, version):
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "jaxlib" else VERSION(name)
    )


@pytest.fixture
def plain_machine(monkeypatch):
    """A machine without accelerators, where nothing is forbidden or hidden."""
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(doctor, "_run", lambda *command: "")
    monkeypatch.setattr(doctor, "_is_installed", lambda pattern: False)
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: False)
    monkeypatch.setattr(type(jax.config), "jax_platforms", None)
    for name in ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def show_files(monkeypatch, *files):
    """Device files that appear."""

    def glob(pattern):
        return [file for file in files if Path(file).match(pattern)]

    monkeypatch.setattr(doctor.glob, "glob", glob)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.10.2", "wrong numbers"),
        ("0.11.0", "slows loops"),
        ("0.11.1", "slows loops"),
        ("0.10.0", "older"),
        ("0.9.12", "older"),
        ("0.11.1.dev20260801", "slows loops"),
    ],
)
def test_bad_jaxlib_is_a_warning_with_its_reason(monkeypatch, plain_machine, version, words):
    install_jaxlib(monkeypatch, version)
    (warning,) = doctor.warnings()
    assert version in warning and words in warning and "pip install" in warning


@pytest.mark.parametrize("version", ["0.10.1", "0.10.3", "0.11.2", "0.12.0", "1.0.0"])
def test_good_jaxlib_is_none(monkeypatch, plain_machine, version):
    install_jaxlib(monkeypatch, version)
    assert doctor.warnings() == []


@pytest.mark.parametrize(
    ("file", "name", "extra"),
    [("/dev/nvidia0", "NVIDIA GPU", "flaxcnn[cuda]"), ("/dev/accel0", "TPU", "flaxcnn[tpu]")],
)
def test_unused_accelerator(monkeypatch, plain_machine, file, name, extra):
    assert doctor.unused_accelerator() is None
    show_files(monkeypatch, file)
    warning = doctor.unused_accelerator() or ""
    assert name in warning and file in warning and f"pip install '{extra}'" in warning
    assert doctor.warnings() == [warning]

    monkeypatch.setattr(doctor, "_is_installed", lambda pattern: True)
    assert "did not start" in (doctor.unused_accelerator() or "")

    monkeypatch.setattr(type(jax.config), "jax_platforms", "cpu")
    assert "JAX_PLATFORMS=cpu forbids it" in (doctor.unused_accelerator() or "")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert doctor.unused_accelerator() is None


def test_gpu_that_only_nvidia_smi_sees(monkeypatch, plain_machine):
    def run(*command):
        return "GPU 0: NVIDIA H200\n" if command == ("nvidia-smi", "-L") else ""

    monkeypatch.setattr(doctor, "_run", run)
    assert "(nvidia-smi)" in (doctor.unused_accelerator() or "")


def test_hidden_gpu(monkeypatch, plain_machine):
    show_files(monkeypatch, "/dev/nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in (doctor.unused_accelerator() or "")


def test_vfio_is_a_tpu_only_with_its_variables(monkeypatch, plain_machine):
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: path == "/dev/vfio")
    assert doctor.unused_accelerator() is None
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    assert "TPU_ACCELERATOR_TYPE" in (doctor.unused_accelerator() or "")
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: False)
    assert doctor.unused_accelerator() is None


def test_plugins_are_found_by_name(monkeypatch):
    assert doctor._is_installed(r"jax(lib)?") and not doctor._is_installed(r"jax-cuda\d+-plug")


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
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    monkeypatch.setattr(doctor, "_read_cpuinfo", lambda: cpuinfo)
    assert doctor.machine_type() == expected


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.delenv("NPROC", raising=False)
    assert doctor.count_threads() == 3
    monkeypatch.setenv("NPROC", "1")
    assert doctor.count_threads() == 1


def test_environment_is_json_and_complete(monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", "my run"])
    environment = doctor.environment()
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
    assert doctor.environment()["git"] is None

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        command = ("git", *identity, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert doctor.environment()["git"] is None  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    revision = git("rev-parse", "HEAD")
    Path("untracked").write_text("1")
    assert doctor.environment()["git"] == {"revision": revision, "dirty": False}
    Path("a").write_text("2")
    assert doctor.environment()["git"] == {"revision": revision, "dirty": True}


def test_the_numbers_are_right_here():
    errors = doctor.self_test()
    assert len(errors) == 3
    assert all(0 < error < 1e-6 for error in errors.values()), errors


@pytest.mark.parametrize(
    ("case", "module", "function"),
    [(0, jax.lax, "conv_general_dilated"), (1, jax, "grad"), (2, jax, "vmap")],
)
def test_wrong_numbers_are_an_error(monkeypatch, capsys, case, module, function):
    """With each of the functions broken in turn its own check fails, loudly."""
    right = getattr(module, function)

    def broken(*arguments, **kwargs):
        result = right(*arguments, **kwargs)
        if callable(result):
            return lambda *a: 1.001 * result(*a)
        return 1.001 * result

    monkeypatch.setattr(module, function, broken)
    assert list(doctor.self_test().values())[case] > doctor.SELF_TEST_TOLERANCE
    assert doctor.main() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ERROR:") and "WRONG NUMBERS" in last


def test_nan_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda: {"convolution": float("nan")})
    assert [finding.level for finding in doctor.examine()][-1] == "error"


def test_report(monkeypatch, plain_machine, capsys):
    monkeypatch.setattr(doctor, "self_test", lambda: {"convolution": 1e-7})
    show_files(monkeypatch, "/dev/nvidia3")
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: False)
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    topics = [line.split("  ")[0] for line in lines]
    for topic in ("python", "jaxlib", "grain", "devices", "machine type", "CPU threads"):
        assert topic in topics
    for setting in ("jax_default_prng_impl", "jax_enable_x64", "XLA_FLAGS"):
        assert setting in topics
    assert lines[-1].startswith("WARNING: an NVIDIA GPU is here (/dev/nvidia3)")


def test_looking_loads_nothing_heavy():
    """The loop calls it before every run; versions come from metadata."""
    code = (
        "import sys; from flaxcnn import doctor; doctor.environment(); doctor.warnings();"
        "heavy = {'orbax', 'tensorflow_datasets', 'matplotlib', 'grain', 'sklearn'};"
        "sys.exit(', '.join(heavy & {name.split('.')[0] for name in sys.modules}) or 0)"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
