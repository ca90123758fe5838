"""Every test runs on CPU with 8 virtual devices, strict ranks and a compilation cache.

Without -m, the tests marked `slow` or `zoo` are skipped. What a run costs is printed at its end in
CPU-seconds, by file, and limited (cpu_seconds.py).

A test compiles for longer than it computes, so LLVM's optimizations are off (XLA's are not):
four files took 23 to 55 % less time. With jaxlib 0.10.1 fusions are emitted the older way, straight
to LLVM, one module a program: a small network's gradients compile in 0.22 CPU-seconds and not 0.68.
The commands that tests start are compiled as a user's, and other versions of jaxlib emit fusions
their own way, so that .ci/run has both. For the tests themselves, too, set
XLA_FLAGS=--xla_backend_optimization_level=3, as two training steps of -m zoo need: without,
rounding moves a gradient of each by 0.13 %, and 0.1 is the bar.
"""

import gc
import importlib.metadata
import importlib.util
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
if importlib.metadata.version("jaxlib") == "0.10.1":  # newer ones abort, they have one way
    _FLAGS += "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
os.environ["XLA_FLAGS"] = _FLAGS + os.environ.get("XLA_FLAGS", "")
# On AVX-512, jaxlib 0.10.1 logs as an error, some kilobytes for each computation that it takes from
# the cache, that the processor lacks LLVM's preferences (prefer-no-gather): log fatal errors alone.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402 (the environment comes first)
import jax.export  # noqa: E402 (jax 0.7 does not do it by itself)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Tracing makes millions of objects that stay, and Python searches them for cycles again and again:
# after every 700 new ones, which took a fifth of test_zoo's time, and whenever a feed ends.
gc.set_threshold(500_000)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest first, so that the two processes end together.

    What is marked `slow` or `zoo` runs only where -m speaks of it, or FILE::TEST. Of the cases of
    a test marked `sample(n)`, as many run by default, the same each time, and the rest are `zoo`.
    """
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for name, cases in grids.items():
        (count,) = cases[0].get_closest_marker("sample").args
        chosen = random.Random(name).sample(cases, min(count, len(cases)))
        for item in cases:
            if item not in chosen:
                item.add_marker(pytest.mark.zoo)
    named = any("::" in argument for argument in config.args)
    for tier in ("slow", "zoo"):
        if tier not in config.option.markexpr and not named:
            config.hook.pytest_deselected(items=[item for item in items if tier in item.keywords])
            items[:] = [item for item in items if tier not in item.keywords]
    first = ("test_parity", "test_augment_devices", "test_conv_forms", "test_pool", "test_zoo")
    items.sort(key=lambda item: "slow" not in item.keywords and item.path.stem not in first)


def pytest_configure(config: pytest.Config) -> None:
    line = "sample(n): of its cases n run by default, as few as jax's own tests try of a grid"
    config.addinivalue_line("markers", line)
    config.pluginmanager.register(_load("cpu_seconds").CpuSeconds(config), "cpu_seconds")


def _load(name: str):
    """A module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def search_once() -> Iterator[None]:
    """What is left after a file is searched for cycles once more, and then no more."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the data sets in ../shared")
    return SHARED


@pytest.fixture
def tfds_dir(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """../shared/data/tfds, as the data directory of tensorflow-datasets."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data" / "tfds"))
    return shared / "data" / "tfds"


@pytest.fixture(scope="session")
def command_env() -> dict[str, str]:
    """The environment of a user's command: one CPU device, compilations cached between tests."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return env | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def run_command(command_env):
    """Runs a command in the repository's root: (arguments, ...) -> CompletedProcess with text."""

    def run(*arguments, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=command_env | env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
