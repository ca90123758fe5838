"""What this machine and this installation are, and what is wrong with them.

`environment` is the record a run keeps, `examine` what `flaxcnn doctor` prints. Versions come from
the packages' metadata, so nothing is imported to learn them.
"""

import dataclasses
import glob
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version

PACKAGES = ("flaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_platforms",
)
BAD_JAXLIB = {  # why pyproject.toml excludes a version
    "0.10.2": "returns wrong numbers on CPU (jax#39103)",
    "0.11.0": "slows loops down on CPU",
    "0.11.1": "slows loops down on CPU (jax#40101)",
}
PLUGINS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}  # extras
SELF_TEST_TOLERANCE = 1e-4  # of the largest element, with float32 sums in any order


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `flaxcnn doctor`; `level` is "ok", "warning" or "error"."""

    topic: str
    text: str
    level: str = "ok"


def examine() -> list[Finding]:
    """Look at versions, devices, threads and settings, and check a few computed numbers."""
    env = environment()
    devices = env["devices"]
    findings = [
        Finding("python", f"{env['python']} on {env['os']}"),
        *(Finding(name, version or "not installed") for name, version in env["versions"].items()),
        Finding("devices", f"{devices['count']} x {devices['kind']} ({devices['platform']})"),
        Finding("machine type", env["machine_type"]),
        Finding("CPU threads", f"{env['threads']} (NPROC sets it; the bits depend on it)"),
        *(Finding(name, str(value)) for name, value in env["settings"].items()),
        *(Finding(name, value) for name, value in env["variables"].items()),
    ]
    findings += [Finding("installation", text, "warning") for text in warnings()]
    for name, error in self_test().items():
        passed = error <= SELF_TEST_TOLERANCE  # False for NaN
        text = f"self-test of {name}: largest error {error:.1e}, allowed {SELF_TEST_TOLERANCE:.0e}"
        wrong = "; this installation computes WRONG NUMBERS, do not train with it"
        findings.append(
            Finding("numbers", text if passed else text + wrong, "ok" if passed else "error")
        )
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """Lay the findings out one per line, those that are not ok last and marked by their level."""
    width = max(len(finding.topic) for finding in findings)
    lines = [f"{f.topic:<{width}}  {f.text}" for f in findings if f.level == "ok"]
    lines += [f"{f.level.upper()}: {f.text}" for f in findings if f.level != "ok"]
    return "\n".join(lines)


def main() -> int:
    """Print what `examine` finds; 1 if the numbers are wrong, else 0."""
    findings = examine()
    print(format_findings(findings))
    return int(any(finding.level == "error" for finding in findings))


def warnings() -> list[str]:
    """Say what a run should be told before it starts.

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
    """Where an NVIDIA GPU shows: a device file, or (as in WSL) nvidia-smi's list."""
    for file in sorted(glob.glob("/dev/nvidia[0-9]*")):
        return file
    return "nvidia-smi" if _run("nvidia-smi", "-L").startswith("GPU ") else ""


def _find_tpu() -> str:
    """Where a TPU shows: its own device file, or VFIO together with a TPU's variables."""
    for file in sorted(glob.glob("/dev/accel[0-9]*")):
        return file
    for variable in ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR"):
        if variable in os.environ and os.path.exists("/dev/vfio"):
            return f"/dev/vfio, {variable}"
    return ""


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


def self_test() -> dict[str, float]:
    """Compare what a CNN is made of, compiled, with NumPy in float64.

    Largest error over largest element: of a convolution, of its kernel gradient inside `lax.scan`,
    and of a vmapped matrix-vector product with a sum over 40,000 rows, which jaxlib 0.10.2 gets
    wrong on CPU (jax#39103: float32 from 32,769 rows on).
    """
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 10, 10, 3))  # 3 batches of 4
    kernel = rng.normal(size=(3, 3, 3, 8))
    matrix, rows = rng.normal(size=(3, 3)), rng.normal(size=(40_000, 3))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def half_square_sum(k, x):
        return 0.5 * jnp.sum(convolve(x, k) ** 2)

    def sum_gradients(x, k):
        step = jax.grad(half_square_sum)
        return jax.lax.scan(lambda total, xi: (total + step(k, xi), None), jnp.zeros_like(k), x)[0]

    def square_norms(a, x):
        return jax.vmap(lambda row: jnp.sum((a @ row) ** 2))(x)

    taps = [(i, j, images[:, :, i : i + 8, j : j + 8]) for i in range(3) for j in range(3)]
    y = np.sum([np.einsum("bnhwc,co->bnhwo", x, kernel[i, j]) for i, j, x in taps], axis=0)
    gradient = np.zeros_like(kernel)
    for i, j, x in taps:
        gradient[i, j] = np.einsum("bnhwc,bnhwo->co", x, y)
    cases = {
        "convolution": (convolve, (images[0], kernel), y[0]),
        "convolution gradient in a loop": (sum_gradients, (images, kernel), gradient),
        "vmapped product and sum": (
            square_norms,
            (matrix, rows),
            ((rows @ matrix.T) ** 2).sum(-1),
        ),
    }
    errors = {}
    # GPUs and TPUs would by default round the factors to fewer bits, as meant.
    with jax.default_matmul_precision("highest"):
        for name, (function, arguments, expected) in cases.items():
            got = jax.jit(function)(*(jnp.asarray(a, jnp.float32) for a in arguments))
            error = np.abs(np.asarray(got, np.float64) - expected).max()
            errors[name] = float(error / np.abs(expected).max())
    return errors
