"""Installing flaxcnn on Colab changes nothing that is there: no jax, no libtpu, no NumPy.

A jax that pip replaced would leave libtpu or the CUDA plugin of the one before, and the run would
land on the CPU (docs/adr/0008).
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def pip(python: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def python() -> str:
    """A Python 3.13, Colab's, whose pip reaches a registry."""
    found = [f"{sys.base_prefix}/bin/python3.13", "python3.13"]
    found += map(str, Path.home().glob(".pyenv/versions/3.13.*/bin/python3.13"))
    for candidate in found:
        try:
            if pip(candidate, "--version").returncode:
                continue
        except FileNotFoundError:
            continue
        if pip(candidate, "index", "versions", "ml-collections").returncode:
            pytest.skip("no package registry can be reached")
        return candidate
    pytest.skip("needs Python 3.13")


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


@pytest.mark.parametrize("machine", ["tpu.", "gpu.", ""])
def test_nothing_that_colab_has_is_replaced(machine, shared, python, tmp_path):
    """Its list of packages, without those of an address, stands for a Colab runtime.

    They are given to pip as installed, not as constraints: by these pip would take an older release
    of a package that Colab lacks, where on Colab it takes the newest and replaces what that needs.
    """
    file = shared / "reference" / "colab" / f"pip-freeze.{machine}txt"
    listed = dict(re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(), re.MULTILINE))
    listed.setdefault("torch", "2.9.0")  # by its address
    needed = {"tpu.": {"libtpu"}, "gpu.": {"jax-cuda12-plugin", "jax-cuda12-pjrt"}}
    assert {"jax", "jaxlib", "flax", "numpy"} | needed.get(machine, set()) <= listed.keys()
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path], check=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    for name, version in listed.items():
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dry_run = ("install", "--dry-run", "--quiet", "--only-binary=:all:", "--report", "-")
    colab = tmp_path / "bin" / "python"
    result = pip(python, "--python", colab, *dry_run, *project["dependencies"])
    assert result.returncode == 0, result.stderr
    installed = [item["metadata"]["name"] for item in json.loads(result.stdout)["install"]]
    assert "ml-collections" in map(canonical, installed)  # Colab lacks it
    replaced = {canonical(name) for name in installed} & {canonical(name) for name in listed}
    assert not replaced
    # So the notebooks of colab/, too, which add what is missing without its dependencies, add all.
    assert set(map(canonical, installed)) <= {
        canonical(Requirement(line).name) for line in project["dependencies"]
    }
