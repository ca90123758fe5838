"""What `train_step.py --device gpu` measures: steps in bfloat16 beside PyTorch's, on a GPU.

Sides of a network: flaxcnn's step; the same under --xla_gpu_deterministic_ops; PyTorch's in
channels_last under autocast, eager and by torch.compile. Then the CIFAR-10 recipe of
configs/cifar10_speed.py, beside airbench's published time. What does not fit into the time that a
network has is skipped with a line. Compiled programs and XLA's autotuning stay in `--cache`, so
that a second run has time for what the first one skipped. Everything ends in docs/gpu.md.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from networks import NETWORKS

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "gpu.md"
BATCHES = {
    "resnet50": 256,
    "vgg16": 128,
    "mobilenet_v2": 256,
    "densenet121": 128,
    "resnext50_32x4d": 128,
}
OURS, REPEATED = "flaxcnn", "flaxcnn deterministic"
COMPILED, EAGER = "torch compile", "torch channels_last"
ROWS = ((OURS, REPEATED), (COMPILED, EAGER))  # compiled side by side, those of a row in turn
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
ROUNDS, ROUND_SECONDS = 5, 0.5
RESERVED = ROUNDS * ROUND_SECONDS * 4 + 2  # seconds of a network's time for its rounds
AIRBENCH = "3.83 s, 3.29 s with torch.compile, 94.01 %, one A100 (Jordan 2024)"


def prepare(side: str, model: str, batch: int):
    """As `train_step.prepare`, of a side on a GPU."""
    network = NETWORKS[model]
    if side.startswith("torch"):
        import torch_side

        prepared = torch_side.prepare_training(
            network, batch, channels_last=True, compiled=side == COMPILED, device="cuda"
        )
    else:
        import jax.numpy as jnp
        import jax_side

        prepared = jax_side.prepare_training(
            network, batch, "flaxcnn", scan=False, dtype=jnp.bfloat16
        )
    return *prepared, 0.0


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """The environment of the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def measure_network(
    model: str, batch: int, seconds: float, start: Callable[[str, str, int, float], Any]
) -> dict[str, Any]:
    """Images/s and seconds of compiling of each side that is ready in time, JSON-ready.

    `start(side, model, batch, limit)` gives a `train_step.Side`, or raises.
    """
    deadline = time.monotonic() + seconds - RESERVED
    sides, skipped = {}, {}

    def start_in_turn(names: tuple[str, ...]) -> None:
        for name in names:
            left = deadline - time.monotonic()
            try:
                if left < 1:
                    raise TimeoutError("no time is left")
                sides[name] = start(name, model, batch, left)
            except (RuntimeError, TimeoutError) as error:
                skipped[name] = str(error)
                print(f"{model}: skipped {name}: {error}", flush=True)

    try:
        with ThreadPoolExecutor(len(ROWS)) as pool:
            list(pool.map(start_in_turn, ROWS))
        rounds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side.run(side.known["unit"])
            side.steps = max(1, round(ROUND_SECONDS / side.run(3)))
        for _ in range(ROUNDS):
            for name, side in sides.items():
                rounds[name].append(side.run(side.steps))
    finally:
        for side in sides.values():
            side.close()
    known = {name: side.known for name, side in sides.items()}
    macs = next((k["train_macs"] for k in known.values() if "train_macs" in k), None)
    return {
        "batch": batch,
        "train_macs": macs,
        "skipped": skipped,
        "images_per_second": {n: batch / statistics.median(times) for n, times in rounds.items()},
        "compile_seconds": {name: k["compile_seconds"] for name, k in known.items()},
        "seconds_per_step": rounds,
    }


def start_side(side: str, model: str, batch: int, limit: float) -> Any:
    """The process of a side, ready; the deterministic one has a flag of its own."""
    from train_step import Side

    if side != REPEATED:
        return Side(side, (model, batch), limit, prepare)
    # The other thread starts PyTorch alone meanwhile, which does not look at it.
    with variables(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"):
        return Side(side, (model, batch), limit, prepare)


def measure_cifar(seconds: float, *, deterministic: bool) -> dict[str, Any]:
    """A run of configs/cifar10_speed.py in bfloat16: accuracy, seconds of training and of all."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if deterministic:
        environment["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "cifar10_speed", "--config.precision=bfloat16", "--workdir", folder]
        started = time.monotonic()
        try:
            finished = subprocess.run(
                [sys.executable, "-m", "flaxcnn", *command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done within {seconds:.0f} s") from None
        whole = time.monotonic() - started
        if finished.returncode:
            raise RuntimeError(finished.stderr.strip().split("\n")[-1][:200])
        return read_cifar(Path(folder)) | {"whole_seconds": whole}


def read_cifar(workdir: Path) -> dict[str, Any]:
    """Accuracy, and the seconds of all steps at the median rate of calls that did not compile."""
    result = json.loads((workdir / "result.json").read_text())
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    batch = json.loads((workdir / "config.json").read_text())["data"]["batch_size"]
    return {
        "accuracy": result["accuracy"],
        "without_views": result["without_views"]["accuracy"],
        "training_seconds": result["steps"] * batch / statistics.median(rates) if rates else None,
    }


def format_document(machine: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """docs/gpu.md: what was measured, on what; a dash where a side was skipped."""
    text = [__doc__.split("\n\n")[1].replace("`--cache`", "`--cache FOLDER`")]
    text += [
        "```\npip install -e '.[test]' torch\npython benchmarks/train_step.py --device gpu\n```"
    ]
    if not machine:
        text += ["Not measured yet: no GPU has been at hand."]
    else:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        text += [
            f"{machine['date']}; {machine['device']}, driver {machine['driver']}; Python "
            f"{machine['python']}, {versions}. Medians of {ROUNDS} rounds of {ROUND_SECONDS} s, "
            "sides in turn, parameters in float32. TFLOP/s are of the multiply-adds of plain "
            "Flax's program, two each."
        ]
        text += [_format_networks(results["networks"]), _format_cifar(results["cifar"])]
    return "# Training steps on a GPU\n\n" + "\n\n".join(text) + "\n"


def _format_networks(networks: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| network | batch | flaxcnn images/s | / torch.compile | / PyTorch | deterministic / not "
        "| TFLOP/s | torch.compile images/s | PyTorch images/s | compile s (F, D, T) |",
        f"|{' --- |' * 10}",
    ]
    notes = []
    for name, found in networks.items():
        speeds, seconds = found["images_per_second"], found["compile_seconds"]
        ours = speeds.get(OURS)

        def ratio(other: str, of: str = OURS, speeds=speeds) -> str:
            return f"{speeds[of] / speeds[other]:.2f}" if {of, other} <= set(speeds) else "-"

        flops = ours and found["train_macs"] and 2 * found["train_macs"] * ours / 1e12
        shown = [name, found["batch"], _show(ours, ".0f"), ratio(COMPILED), ratio(EAGER)]
        shown += [ratio(OURS, REPEATED), _show(flops, ".0f")]
        shown += [_show(speeds.get(side), ".0f") for side in (COMPILED, EAGER)]
        shown += [", ".join(_show(seconds.get(s), ".0f") for s in (OURS, REPEATED, COMPILED))]
        lines.append(f"| {' | '.join(map(str, shown))} |")
        notes += [f"- {name}, {side}: {why}" for side, why in found["skipped"].items()]
    table = "\n".join(lines)
    return f"{table}\n\nSkipped:\n\n" + "\n".join(notes) if notes else table


def _format_cifar(cifar: Mapping[str, Mapping[str, Any] | str]) -> str:
    lines = [
        "`cifar10_speed`, one run of seed 0 each; training alone is steps at the median rate:",
        "",
        "| | test accuracy, six views | without | training, s | the whole command, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in cifar.items():
        if isinstance(found, str):
            lines.append(f"| {name} | {found} | - | - | - |")
            continue
        figures = [f"{found[key]:.2%}" for key in ("accuracy", "without_views")]
        figures += [_show(found[key], ".1f") for key in ("training_seconds", "whole_seconds")]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", f"airbench94, whose recipe it is: {AIRBENCH}."])


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def find_device() -> str:
    """What JAX calls its first GPU, asked in a process of its own; "" if it has none."""
    script = "import jax; print(jax.devices('gpu')[0].device_kind)"
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def describe(device: str) -> dict[str, Any]:
    """Device, driver, versions and date."""
    from train_step import find_versions

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "driver": driver or "unknown",
        "python": platform.python_version(),
        "versions": find_versions(),
    }


def main(args: argparse.Namespace) -> int:
    """Measures, writes the document after each network; 2 where there is no GPU."""
    device = find_device()
    if not device:
        print("no GPU: JAX finds none here, so nothing is measured", file=sys.stderr)
        return 2
    machine, started = describe(device), time.monotonic()
    print(json.dumps(machine), flush=True)
    results: dict[str, Any] = {"networks": {}, "cifar": {}}

    def write() -> None:
        args.output.write_text(format_document(machine, results))
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, **results}, indent=1))

    models = [name for name in BATCHES if name in args.models]
    cache = Path(args.cache).absolute()
    kept = {
        # With it go the results of XLA's autotuning (jax_persistent_cache_enable_xla_caches).
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the sides share the device's memory
    }
    with variables(**kept):
        for model in models:
            batch = args.batch or BATCHES[model]
            try:
                found = measure_network(model, batch, args.network_seconds, start_side)
            except RuntimeError as error:
                print(f"{model}: not measured: {error}", flush=True)
                continue
            results["networks"][model] = found
            print(f"{model}: {json.dumps(found['images_per_second'])}", flush=True)
            write()
        for name, deterministic in (("as it is", False), ("deterministic", True)):
            left = args.seconds - (time.monotonic() - started)
            try:
                if left < 20:
                    raise TimeoutError("no time is left")
                results["cifar"][name] = measure_cifar(left, deterministic=deterministic)
            except (RuntimeError, TimeoutError) as error:
                results["cifar"][name] = f"skipped: {error}"
            print(f"cifar10_speed, {name}: {results['cifar'][name]}", flush=True)
            write()
    print(f"written: {args.output}, after {time.monotonic() - started:.0f} s")
    return 0
