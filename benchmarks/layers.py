"""Times single convolutions and their gradients in flaxcnn, `lax` and PyTorch, side by side.

    python benchmarks/layers.py --shapes all --json layers.json

For each shape the forward pass, the input gradient and the kernel gradient; in JAX once as a call
of its own and once inside `lax.scan` of 8 steps, which is where XLA:CPU loses layouts (jax#12868).
PyTorch is the better of its two memory layouts. Freed memory is kept, for all sides alike, as they
share a process (docs/adr/0006). In each round every function runs once, for
`--min-seconds`; the table has medians, as GFLOP/s of the convolution's own arithmetic. What takes
longer than two seconds is run once only.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from flaxcnn.memory import keep_freed_memory

PASSES = ("forward", "input gradient", "kernel gradient")
SCAN_STEPS = 8
_SLOW = 2.0  # seconds; in a scan some of lax's gradients run a hundred times slower


class Shape(NamedTuple):
    """A convolution of square maps, padded by (kernel - 1) / 2."""

    size: int
    channels: int
    features: int
    kernel: int
    stride: int = 1
    groups: int = 1

    def count_macs(self, batch: int) -> int:
        """Counts the multiply-adds, the same for each of the three passes."""
        taps = self.kernel**2 * self.channels // self.groups
        return batch * math.ceil(self.size / self.stride) ** 2 * taps * self.features


SHAPES = {
    "resnet stem 7x7/2": Shape(224, 3, 64, 7, 2),
    "vgg stem 3x3": Shape(224, 3, 64, 3),
    "cifar stem 5x5": Shape(32, 3, 128, 5),
    "1x1 56 64-256": Shape(56, 64, 256, 1),
    "1x1 28 512-128": Shape(28, 512, 128, 1),
    "1x1 14 256-1024": Shape(14, 256, 1024, 1),
    "1x1 7 512-2048": Shape(7, 512, 2048, 1),
    "1x1/2 56 256-512": Shape(56, 256, 512, 1, 2),
    "3x3 56 64": Shape(56, 64, 64, 3),
    "3x3 28 128": Shape(28, 128, 128, 3),
    "3x3 14 256": Shape(14, 256, 256, 3),
    "3x3 7 512": Shape(7, 512, 512, 3),
    "3x3/2 56 128": Shape(56, 128, 128, 3, 2),
    "3x3/2 14 512": Shape(14, 512, 512, 3, 2),
    "5x5 27 64-192": Shape(27, 64, 192, 5),
    "grouped 3x3 56 128/32": Shape(56, 128, 128, 3, groups=32),
    "grouped 3x3 14 512/32": Shape(14, 512, 512, 3, groups=32),
    "grouped 3x3/2 28 512/32": Shape(28, 512, 512, 3, 2, groups=32),
    "depthwise 3x3 112 32": Shape(112, 32, 32, 3, groups=32),
    "depthwise 3x3/2 112 96": Shape(112, 96, 96, 3, 2, groups=96),
    "depthwise 3x3 14 576": Shape(14, 576, 576, 3, groups=576),
    "depthwise 3x3 19 728": Shape(19, 728, 728, 3, groups=728),
}


def make_jax_functions(shape: Shape, batch: int, library: str) -> dict:
    """Compiles every pass of one library, alone and in a scan: {(pass, side): run(calls)}."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from flaxcnn import layers

    size, channels, features, kernel, stride, groups = shape
    pads = [((kernel - 1) // 2,) * 2] * 2

    def convolve(x, weights):
        if library == "flaxcnn":
            return layers.conv(x, weights, strides=stride, padding=pads, groups=groups)
        return lax.conv_general_dilated(
            *(x, weights, (stride, stride), pads),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    rng = np.random.default_rng(0)
    draw = functools.partial(rng.standard_normal, dtype=np.float32)
    out = math.ceil(size / stride)
    xs = jnp.asarray(draw((SCAN_STEPS, batch, size, size, channels)))
    dys = jnp.asarray(draw((SCAN_STEPS, batch, out, out, features)))
    weights = jnp.asarray(draw((kernel, kernel, channels // groups, features)))
    # In a scan the first operand is another one at each step, or XLA would hoist the work out.
    passes = {
        "forward": (convolve, xs, weights),
        "input gradient": (lambda dy, w: jax.vjp(lambda x: convolve(x, w), xs[0])[1](dy)[0],)
        + (dys, weights),
        "kernel gradient": (
            lambda x, dy: jax.vjp(functools.partial(convolve, x), weights)[1](dy)[0],
            *(xs, dys[0]),
        ),
    }

    def repeat(f, stack, other):
        def step(_, x):
            return f(x, other), None

        return lax.scan(step, jnp.zeros_like(f(stack[0], other)), stack)[0]

    def make_run(f, operands, steps):
        compiled = jax.jit(f).lower(*operands).compile()

        def run(calls: int) -> None:
            for _ in range(math.ceil(calls / steps)):
                y = compiled(*operands)
            y.block_until_ready()

        return run

    functions = {}
    for name, (f, stack, other) in passes.items():
        functions[name, library] = make_run(f, (stack[0], other), 1)
        in_scan = functools.partial(repeat, f)
        functions[name, f"{library} scan"] = make_run(in_scan, (stack, other), SCAN_STEPS)
    return functions


def make_torch_functions(shape: Shape, batch: int) -> dict:
    """Prepares every pass in PyTorch, in both memory layouts: {(pass, side): run(calls)}."""
    import torch

    size, channels, features, kernel, stride, groups = shape
    out = math.ceil(size / stride)
    pad, backward = (kernel - 1) // 2, torch.ops.aten.convolution_backward
    functions = {}
    for name, layout in (
        ("torch", torch.contiguous_format),
        ("torch channels_last", torch.channels_last),
    ):
        x, dy, weights = (
            torch.randn(*dimensions).to(memory_format=layout)
            for dimensions in (
                (batch, channels, size, size),
                (batch, features, out, out),
                (features, channels // groups, kernel, kernel),
            )
        )
        window = ([stride] * 2, [pad] * 2, [1, 1])
        calls = {"forward": functools.partial(torch.conv2d, x, weights, None, *window, groups)}
        for i, gradient in enumerate(PASSES[1:]):
            wanted = [j == i for j in range(3)]
            calls[gradient] = functools.partial(
                backward, dy, x, weights, None, *window, False, [0, 0], groups, wanted
            )
        for which, call in calls.items():
            functions[which, name] = functools.partial(_run_torch, call)
    return functions


def _run_torch(call, calls: int) -> None:
    for _ in range(calls):
        call()


def measure(functions: dict, repeats: int, min_seconds: float) -> dict:
    """Runs the functions in turn, `repeats` rounds; returns the median seconds of a call.

    One whose first run takes longer than `_SLOW` seconds is left at that run.
    """
    calls, rounds = {}, {key: [] for key in functions}
    for key, run in functions.items():
        unit = SCAN_STEPS if key[1].endswith("scan") else 1
        seconds = _time(run, unit)
        if seconds > _SLOW:
            rounds[key].append(seconds / unit)
        else:
            calls[key] = math.ceil(min_seconds / _time(run, unit)) * unit
    for _ in range(repeats):
        for key, count in calls.items():
            rounds[key].append(_time(functions[key], count) / count)
    return {key: statistics.median(times) for key, times in rounds.items()}


def _time(run, calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return time.perf_counter() - start


def measure_shape(name: str, batch: int, args: argparse.Namespace) -> list[dict]:
    """Measures one shape: a row for each pass."""
    shape = SHAPES[name]
    functions = {}
    for library in ("flaxcnn", "lax"):
        functions |= make_jax_functions(shape, batch, library)
    if args.torch:
        functions |= make_torch_functions(shape, batch)
    seconds = measure(functions, args.repeats, args.min_seconds)
    flops = 2 * shape.count_macs(batch)
    rows = []
    for which in PASSES:
        speeds = {side: flops / s / 1e9 for (p, side), s in seconds.items() if p == which}
        torch = [speed for side, speed in speeds.items() if side.startswith("torch")]
        if torch:
            speeds["best torch"] = max(torch)
        rows.append({"shape": name, "batch": batch, "pass": which, "gflops": speeds})
    return rows


def format_row(row: dict) -> str:
    """Formats a row of the table."""
    speeds = row["gflops"]
    columns = ("flaxcnn", "flaxcnn scan", "lax", "lax scan", "best torch")
    cells = [f"{speeds[side]:.1f}" if side in speeds else "-" for side in columns]
    for ours, other in (("flaxcnn", "lax"), ("flaxcnn", "best torch"), ("flaxcnn scan", "flaxcnn")):
        cells.append(f"{speeds[ours] / speeds[other]:.2f}" if other in speeds else "-")
    return f"| {' | '.join([row['shape'], row['pass'], *cells])} |"


def measure_matmul(repeats: int) -> float:
    """Measures the machine's matrix product, float32, 2048 cubed: the best of `repeats`."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((2048, 2048), jnp.float32)
    product, times = jax.jit(jnp.matmul), []
    product(x, x).block_until_ready()
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times) / 1e9


def parse_flags() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="all", help="parts of names with commas, or all")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--min-seconds", type=float, default=0.05, help="of a function in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file for the results, written after each shape")
    args = parser.parse_args()
    parts = [""] if args.shapes == "all" else args.shapes.split(",")
    args.shapes = [name for name in SHAPES if any(part in name for part in parts)]
    if not args.shapes:
        parser.error(f"no such shape: choose from {', '.join(SHAPES)}")
    return args


def main() -> None:
    """Measures the shapes asked for, one after the other."""
    args = parse_flags()
    keep_freed_memory()
    os.environ["NPROC"] = str(args.threads)  # XLA's threads
    args.torch = importlib.util.find_spec("torch") is not None
    if args.torch:
        import torch

        torch.set_num_threads(args.threads)
    else:
        print("PyTorch is not installed: its columns stay empty")
    print(f"matmul {measure_matmul(args.repeats):.0f} GFLOP/s, batch {args.batch}", flush=True)
    print(
        "| shape | pass | flaxcnn | in scan | lax | in scan | PyTorch | / lax | / PyTorch "
        "| scan / call |"
    )
    print("| --- " * 10 + "|")
    rows = []
    for name in args.shapes:
        new = measure_shape(name, args.batch, args)
        print("\n".join(map(format_row, new)), flush=True)
        rows += new
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
