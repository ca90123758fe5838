"""Times one training step in flaxcnn, plain Flax and PyTorch, side by side.

    python benchmarks/train_step.py --models mnist_cnn_220k,resnet50 --json result.json

The step is the same everywhere: forward pass with BatchNorm in training mode, cross-entropy,
gradients, SGD with momentum, float32. Every side lives in a process of its own, which compiles and
then waits; in each round every side in turn runs its steps, alone, for `--min-seconds`. So load and
heat that come and go meet all sides alike. Ratios are medians over rounds of the ratio within a
round. README.md says what each column means.
"""

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gpu
from networks import NETWORKS

from flaxcnn.memory import keep_freed_memory

FLAXCNN, SCAN, FLAX = "flaxcnn", "flaxcnn scan", "flax"
TORCH_EAGER = {"torch": False, "torch channels_last": True}  # whether channels come last
TORCH_COMPILED = "torch compile"
MATMUL_SIZE = 2048
_SLOW = 20.0  # seconds; plain Flax takes minutes for a step with grouped convolutions


def prepare(side: str, model: str | None, batch: int, threads: int, channels_last: bool):
    """Builds and compiles one side, in the process that will run it: (run, what is known of it)."""
    if "torch" in side:
        import torch
        import torch_side

        torch.set_num_threads(threads)
        base = _read_memory("VmRSS")
        if model is None:
            return *torch_side.prepare_matmul(MATMUL_SIZE), base
        compiled = side == TORCH_COMPILED
        prepared = torch_side.prepare_training(NETWORKS[model], batch, channels_last, compiled)
    else:
        import jax
        import jax_side

        jax.devices()
        base = _read_memory("VmRSS")
        if model is None:
            return *jax_side.prepare_matmul(MATMUL_SIZE), base
        library = FLAX if side == FLAX else FLAXCNN
        prepared = jax_side.prepare_training(NETWORKS[model], batch, library, scan=side == SCAN)
    return *prepared, base


def serve(connection, prepare: Callable, side: str, *args) -> None:
    """The life of a side: prepare, run as many steps as asked, report the peak of memory."""
    if side in (FLAXCNN, SCAN):
        keep_freed_memory()  # as the engine does
    os.setsid()  # so that the processes of a compiler end with this one
    try:
        run, known, base = prepare(side, *args)
        run(known["unit"])
        _forget_peak()
        connection.send(known)
        while steps := connection.recv():
            start = time.perf_counter()
            loss = run(steps)
            elapsed = time.perf_counter() - start
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}")
            connection.send(elapsed)
        connection.send(_read_memory("VmHWM") - base)
    except Exception as error:  # whatever it is, the other sides go on
        connection.send(f"{type(error).__name__}: {str(error)[:200].partition(chr(10))[0]}")


def _read_memory(field: str) -> float:
    """Reads this process's resident memory (VmRSS), or its peak (VmHWM), in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def _forget_peak() -> None:
    """Hands freed memory back and starts the peak anew: what compiling took is not the step's."""
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # some containers refuse; then the peak includes compiling
        Path("/proc/self/clear_refs").write_text("5")


class Side:
    """The parent's end of one side's process."""

    def __init__(self, name: str, args: tuple, limit: float, prepare: Callable = prepare):
        """Starts the process and waits until it is ready, at most `limit` seconds."""
        self.name, self.rounds, self.estimate = name, [], 0.0
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, prepare, name, *args))
        self.process.start()
        theirs.close()
        try:
            self.known = self._receive(limit)
            self.steps = self.known["unit"]
        except BaseException:
            self.close()
            raise

    def run(self, steps: int) -> float:
        """Runs `steps` steps; returns the seconds of one."""
        self.connection.send(steps)
        return self._receive(None) / steps

    def finish(self) -> float:
        """Ends the process; returns the peak of its memory in MiB."""
        self.connection.send(0)
        peak = self._receive(None)
        self.process.join(10)  # an orderly exit, if it comes soon
        self.close()
        return peak

    def close(self) -> None:
        """Ends the process and those it started."""
        if self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def _receive(self, limit: float | None):
        if not self.connection.poll(limit):
            raise TimeoutError(f"not ready within {limit:.0f} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def start_sides(model: str | None, batch: int, args: argparse.Namespace) -> list[Side]:
    """Starts every side that works here; says which does not and why.

    PyTorch is compiled last, from the faster of its two memory layouts.
    """
    sides: list[Side] = []

    def start(name: str, channels_last: bool = False, limit: float = args.limit) -> None:
        try:
            sides.append(Side(name, (model, batch, args.threads, channels_last), limit))
        except (RuntimeError, TimeoutError) as error:
            print(f"{model or 'matmul'}: skipped {name}: {error}", flush=True)

    if model is None:
        start("matmul")
        if args.torch:
            start("matmul torch")
    else:
        for name in (FLAXCNN, SCAN, FLAX):
            start(name)
        for name, channels_last in TORCH_EAGER.items() if args.torch else ():
            start(name, channels_last)
    for side in sides:
        seconds = side.run(side.known["unit"])
        units = math.ceil(args.min_seconds / seconds / side.known["unit"])
        side.steps, side.estimate = units * side.known["unit"], seconds
    eager = [side for side in sides if side.name in TORCH_EAGER]
    if eager and args.torch_compile:
        faster = min(eager, key=lambda side: side.estimate)
        start(TORCH_COMPILED, TORCH_EAGER[faster.name], args.torch_compile)
        if sides[-1].name == TORCH_COMPILED:
            sides[-1].steps = faster.steps
    return sides


def measure(sides: list[Side], repeats: int) -> None:
    """Runs the sides in turn, `repeats` rounds, each round starting with another side.

    One that takes longer than `_SLOW` seconds for a step is left at what it has shown.
    """
    slow = [side for side in sides if side.estimate > _SLOW]
    for side in slow:
        side.rounds.append(side.estimate)
    sides = [side for side in sides if side not in slow]
    for i in range(repeats):
        shift = i % max(1, len(sides))
        for side in [*sides[shift:], *sides[:shift]]:
            side.rounds.append(side.run(side.steps))


def measure_model(model: str, args: argparse.Namespace) -> dict:
    """Measures one network; everything that is known of it, ready for JSON."""
    batch = args.batch or NETWORKS[model].batch
    sides, rulers = [], []
    try:
        sides = start_sides(model, batch, args)
        if not any("train_macs" in side.known for side in sides):
            raise RuntimeError("neither flaxcnn nor Flax is ready")
        rulers = start_sides(None, 0, args)
        measure(sides + rulers, args.repeats)
        peaks = {side.name: side.finish() for side in sides}
    finally:
        for side in sides + rulers:
            side.close()

    peak_flops = max(2 * r.known["macs"] / statistics.median(r.rounds) for r in rulers)
    # The multiply-adds come from plain Flax's program: the same work for every side.
    train_macs = next(s.known["train_macs"] for s in sides if "train_macs" in s.known)
    result = {"batch": batch, "matmul_gflops": peak_flops / 1e9, "train_macs": train_macs}
    result["sides"] = {
        side.name: {
            "images_per_second": batch / statistics.median(side.rounds),
            "share_of_peak": 2 * train_macs * batch / statistics.median(side.rounds) / peak_flops,
            "compile_seconds": side.known["compile_seconds"],
            "peak_memory_mib": peaks[side.name],
            "steps_per_round": side.steps,
            "seconds_per_step": side.rounds,
        }
        for side in sides
    }
    for side in sides:
        expected = NETWORKS[model].params
        if side.known["params"] != expected:
            raise ValueError(f"{side.name}: {side.known['params']} parameters, not {expected}")
    rounds = {side.name: side.rounds for side in sides}
    torch_rounds = [times for name, times in rounds.items() if name.startswith("torch")]
    if torch_rounds:
        best = min(torch_rounds, key=statistics.median)
        result["best_torch"] = next(name for name, times in rounds.items() if times is best)
        rounds["best torch"] = best
    result["ratios"] = {
        f"{ours} / {other}": statistics.median(
            b / a for a, b in zip(rounds[ours], itertools.cycle(rounds[other]), strict=False)
        )
        for ours, other in ((FLAXCNN, FLAX), (FLAXCNN, "best torch"), (SCAN, FLAXCNN))
        if ours in rounds and other in rounds
    }
    return result


def format_table(models: dict[str, dict]) -> str:
    """Formats the results as a Markdown table; "-" where a side did not run."""
    header = (
        "network",
        "batch",
        *("flaxcnn img/s", "/ Flax", "/ PyTorch", "scan / step"),
        *("Flax img/s", "PyTorch img/s", "PyTorch as"),
        *("% of matmul peak (F, X, P)", "compile s (F, X, P)", "peak MiB (F, X, P)"),
    )
    rows = [header, ["---"] * len(header)]
    for model, result in models.items():
        best = result.get("best_torch")
        shown = [result["sides"].get(name, {}) for name in (FLAXCNN, FLAX, best)]
        speeds = [_show(side.get("images_per_second"), ".1f") for side in shown]
        ratios = [
            _show(result["ratios"].get(name), ".2f")
            for name in ("flaxcnn / flax", "flaxcnn / best torch", "flaxcnn scan / flaxcnn")
        ]
        triples = [
            ", ".join(_show(side.get(key), spec) for side in shown)
            for key, spec in (
                ("share_of_peak", ".0%"),
                ("compile_seconds", ".1f"),
                ("peak_memory_mib", ".0f"),
            )
        ]
        rows.append([model, str(result["batch"]), speeds[0], *ratios, *speeds[1:], best or "-"])
        rows[-1] += triples
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _show(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def find_versions() -> dict[str, str]:
    """The versions of the packages that are measured."""
    versions = {}
    for package in ("flaxcnn", "jax", "jaxlib", "flax", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def describe_machine(threads: int) -> dict[str, object]:
    """Tells what the numbers depend on: processor, threads, versions, flags, date."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": find_versions(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def parse_flags() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: see gpu.py; writes docs/gpu.md",
    )
    parser.add_argument("--models", default="all", help="names with commas, or all (default)")
    parser.add_argument("--batch", type=int, help="images per step (default: the network's own)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--min-seconds", type=float, default=0.5, help="of a side in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=600, help="seconds to get a side ready")
    parser.add_argument(
        "--torch-compile", type=float, default=300, help="the same for torch.compile; 0: not tried"
    )
    parser.add_argument("--json", type=Path, help="file for the results, written after each model")
    gpu_only = parser.add_argument_group("with --device gpu")
    gpu_only.add_argument("--seconds", type=float, default=470, help="of all (default 470)")
    gpu_only.add_argument("--network-seconds", type=float, default=78, help="of a network's sides")
    gpu_only.add_argument("--cache", default=".cache/gpu", help="compiled programs, autotuning")
    gpu_only.add_argument("--output", type=Path, default=gpu.DOCUMENT, help="the document")
    args = parser.parse_args()
    args.models = list(NETWORKS) if args.models == "all" else args.models.split(",")
    if unknown := set(args.models) - set(NETWORKS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(NETWORKS)}")
    if args.repeats < 1 or args.threads < 1:
        parser.error("--repeats and --threads are at least 1")
    return args


def main() -> None:
    """Measures the networks asked for, one after the other."""
    args = parse_flags()
    if args.device == "gpu":
        sys.exit(gpu.main(args))
    os.environ["NPROC"] = str(args.threads)  # XLA's threads, in every side
    # Said when a compiler that took too long is killed; nothing is left behind.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    args.torch = importlib.util.find_spec("torch") is not None
    if not args.torch:
        print("PyTorch is not installed: its columns stay empty")
    elif args.torch_compile and not (shutil.which("g++") or shutil.which("clang++")):
        print("no C++ compiler: torch.compile is not tried")
        args.torch_compile = 0
    machine = describe_machine(args.threads)
    print(json.dumps(machine), flush=True)
    models = {}
    for model in args.models:
        try:
            # An empty cache: the compile seconds of PyTorch are those of a first run.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                models[model] = measure_model(model, args)
        except RuntimeError as error:
            print(f"{model}: not measured: {error}", flush=True)
            continue
        ratios = (f"{name} {ratio:.2f}" for name, ratio in models[model]["ratios"].items())
        print(f"{model}: {', '.join(ratios)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "models": models}, indent=1))
    print(format_table(models))


if __name__ == "__main__":
    main()
