"""What this machine and this installation are, and what the start of a run reports of them.

`environment` is the record a run keeps. Versions come from the packages' metadata, so nothing is
imported to learn them.
"""

import glob
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement
from packaging.version import Version

PACKAGES = ("flaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_platforms",
)
BAD_JAXLIB = {  # why pyproject.toml excludes a version
    "0.10.2": "returns wrong numbers on CPU (jax#39103)",
    "0.11.0": "slows loops down on CPU",
    "0.11.1": "slows loops down on CPU (jax#40101)",
}
PLUGINS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}  # extras


def find_warnings() -> list[str]:
    """Report what a user should know before a run starts.

    A bad jaxlib; an accelerator that is not used; a libtpu or CUDA plugin that jax does not pin.
    The last is not said of Colab and Kaggle, which choose pairs of their own, if theirs is used.
    """
    unused = unused_accelerator()
    found = [_judge_jaxlib(_version("jaxlib") or ""), unused]
    if not unused and not _host():
        found += [_judge_plugin(plugin) for plugin in PLUGINS]
    return [text for text in found if text]


def environment() -> dict[str, Any]:
    """Everything around a run that can change its bits or explain them, JSON-ready.

    `git` is the repository of the working directory, None outside one.
    """
    device = jax.devices()[0]
    variables = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "CUDA_VISIBLE_DEVICES")
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "os": platform.platform(),
        "machine_type": machine_type(),
        "threads": count_threads(),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "process_count": jax.process_count(),
        },
        "settings": {name: getattr(jax.config, name) for name in SETTINGS},
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in variables or name.startswith("JAX_")
        },
        "git": _git_state(),
        "command": shlex.join(sys.argv),
    }


def machine_type() -> str:
    """Name what decides the code XLA runs on the CPU: "x86_64-avx2 AuthenticAMD-25-1", "aarch64".

    The vector instructions decide what is generated; the processor's vendor, family and model stand
    for its caches, which decide how matrix products are cut into blocks. Golden hashes of
    `flaxcnn reproduce` are kept per machine type.
    """
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if machine != "x86_64":
        return machine
    cpuinfo = _read_cpuinfo()
    found = {
        name: re.search(rf"^{name}\s*:(.*)$", cpuinfo, re.MULTILINE)
        for name in ("flags", "vendor_id", "cpu family", "model")
    }
    flags, *processor = (match.group(1).strip() if match else "" for match in found.values())
    known = flags.split()
    vectors = "-avx512" if "avx512f" in known else "-avx2" if "avx2" in known else ""
    return f"{machine}{vectors} {'-'.join(filter(None, processor))}".strip()


def count_threads() -> int:
    """Count the threads XLA computes with on CPU: NPROC, else the CPUs this process may use."""
    nproc = os.environ.get("NPROC", "")
    if nproc.isdigit() and int(nproc) > 0:
        return int(nproc)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unused_accelerator() -> str | None:
    """Say which accelerator of this machine JAX does not use, why, and what to do; None if none."""
    if jax.default_backend() != "cpu":
        return None
    for name, seen, platforms, plugins in (
        ("an NVIDIA GPU", _find_gpu(), ("cuda", "gpu"), ("jax-cuda12-plugin", "jax-cuda13-plugin")),
        ("a TPU", _find_tpu(), ("tpu",), ("libtpu",)),
    ):
        if not seen:
            continue
        allowed = (jax.config.jax_platforms or "").split(",")  # pyright: ignore[reportAttributeAccessIssue]
        installed = [plugin for plugin in plugins if _version(plugin)]
        misfit = next(filter(None, map(_judge_plugin, installed)), None)
        if allowed != [""] and not set(allowed) & set(platforms):
            why = f"JAX_PLATFORMS={','.join(allowed)} forbids it; unset it to use it"
        elif platforms[0] == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            why = "CUDA_VISIBLE_DEVICES hides it; unset it to use it"
        elif misfit:
            why = misfit
        elif installed:
            why = "its plugin is installed but did not start; see what JAX printed, and the driver"
        else:
            why = f"JAX has no support for it here: {_repair(plugins[0])}"
        return f"{name} is here ({seen}) and JAX computes on the CPU. {why}"
    return None


def judge_libtpu() -> str | None:
    """Say how the installed libtpu differs from the one that jax pins; None if it does not."""
    return _judge_plugin("libtpu")


def _judge_jaxlib(version: str) -> str | None:
    """What is wrong with a jaxlib of that version, by the bounds that flaxcnn declares for jax."""
    bounds = _requirements("flaxcnn").get("jax")
    if not version or not bounds:
        return None
    release = Version(version).base_version  # a nightly build has the faults of its release
    if bounds.specifier.contains(release):
        return None
    reason = BAD_JAXLIB.get(release, "is not one that flaxcnn supports")
    repair = _host() or f"pip install -U '{bounds}'"
    return f"jaxlib {version} {reason}: {repair}"


def _judge_plugin(plugin: str) -> str | None:
    """How the installed version of a plugin, or of what it loads, differs from what is pinned.

    A jax that pip replaced leaves the plugin of the one before.
    """
    for package, owner in ((plugin, "jax"), (plugin.replace("plugin", "pjrt"), plugin)):
        version, pinned = _version(package), _requirements(owner).get(package)
        if version and pinned and not pinned.specifier.contains(version, prereleases=True):
            return (
                f"{package} {version} is not made for {owner} {_version(owner)}, which needs "
                f"{pinned.specifier}: {_repair(plugin)}"
            )
    return None


def _repair(plugin: str) -> str:
    """What brings the plugin that belongs to the installed jax, which stays as it is."""
    return _host() or f"pip install 'jax[{PLUGINS[plugin]}]=={_version('jax')}'"


def _host() -> str:
    """How Colab or Kaggle brings back the versions that it was built with; "" elsewhere.

    There jax is never replaced: libtpu or the CUDA plugin would stay behind.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # first: Kaggle's image is made from Colab's
        return "stop Kaggle's session and start it again, which brings its own versions back"
    if any(name.startswith("COLAB_") for name in os.environ):
        return "Runtime > Disconnect and delete runtime brings Colab's own versions back"
    return ""


def _find_gpu() -> str:
    """Where an NVIDIA GPU shows: a device file, nvidia-smi's list (as in WSL), or Colab says so."""
    for file in sorted(glob.glob("/dev/nvidia[0-9]*")):
        return file
    if _run("nvidia-smi", "-L").startswith("GPU "):
        return "nvidia-smi"
    return "COLAB_GPU=1" if os.environ.get("COLAB_GPU") == "1" else ""


def _find_tpu() -> str:
    """Where a TPU shows: its own device file, VFIO with a TPU's variables, or Colab says so."""
    for file in sorted(glob.glob("/dev/accel[0-9]*")):
        return file
    for variable in ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR"):
        if variable in os.environ and os.path.exists("/dev/vfio"):
            return f"/dev/vfio, {variable}"
    return "COLAB_TPU_1VM=1" if os.environ.get("COLAB_TPU_1VM") == "1" else ""


def _requirements(package: str) -> dict[str, Requirement]:
    """The versions that a package requires, with any extra, by name; none if not installed."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {wanted.name: wanted for wanted in map(Requirement, lines) if wanted.specifier}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    revision = _run("git", "rev-parse", "--verify", "--quiet", "HEAD").strip()
    if not revision:
        return None
    changed = _run("git", "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": bool(changed.strip())}


def _run(*command: str) -> str:
    """What a command prints; nothing where it is missing, fails or hangs."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def _read_cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
