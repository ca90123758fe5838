"""Seconds of a training step and bytes of its collectives, by the number of devices of a CPU.

    python benchmarks/scaling.py digits mnist_tiny --batch 64 --json scaling.json

The batch per device is fixed. Each number of devices is a process of its own with as many virtual
devices, which share the machine's cores: CPU-seconds show what dividing the work costs, and nothing
shows what more hardware would bring. The bytes do not depend on that: they are those of the
compiled step.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_CALL = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_REPEATS = 5


def count_collectives(text: str) -> dict[str, list[int]]:
    """Of compiled HLO: by kind the bytes of each collective's result, in the program's order."""
    found: dict[str, list[int]] = {}
    for shapes, kind in _CALL.findall(text):
        sizes = (
            _BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            for dtype, shape in _ARRAY.findall(shapes)
        )
        found.setdefault(kind, []).append(sum(sizes))
    return found


def measure(name: str, batch: int) -> dict:
    """One training call of the config on all devices of this process."""
    import jax

    from flaxcnn.estimate.step_cost import trace_call
    from flaxcnn.training import load_config
    from flaxcnn.training.experiment import open_experiment

    config = load_config(name)
    config.data.batch_size = batch * jax.device_count()
    config.data.eval_batch_size = 8 * jax.device_count()
    config.steps_per_call = 2  # as many as an epoch of a small set has on eight devices
    experiment = open_experiment(config)
    traced, _ = trace_call(experiment, jax.devices())
    compiled = traced.lower().compile()
    state = experiment.initial_state()
    feeder, parallel = experiment.feeder(experiment.dataset.splits["train"]), experiment.parallel
    arrays, items = parallel.replicate(feeder.arrays), parallel.split(experiment.plan[0])
    placed, seconds, busy = parallel.replicate(state), [], []
    for _ in range(1 + _REPEATS):
        started, spent = time.perf_counter(), time.process_time()
        placed, _ = jax.block_until_ready(compiled(placed, arrays, items, 1.0))
        seconds.append((time.perf_counter() - started) / len(items))
        busy.append((time.process_time() - spent) / len(items))
    collectives = count_collectives(compiled.as_text())
    return {
        "config": name,
        "devices": jax.device_count(),
        "batch": config.data.batch_size,
        "seconds_per_step": min(seconds[1:]),
        "cpu_seconds_per_step": min(busy[1:]),
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "collectives": {kind: [len(sizes), sum(sizes)] for kind, sizes in collectives.items()},
        "jax": jax.__version__,
    }


def main() -> None:
    """Measures each config on each number of devices, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("configs", nargs="+", help="names or files, of sets that fit in memory")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=64, help="per device")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.configs[0], args.batch)))
        return
    rows = []
    print("| config | devices | batch | ms a step | CPU-ms | all-reduces: kB a step | parameters |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.configs:
        for count in args.devices:
            command = [sys.executable, __file__, name, "--batch", str(args.batch), "--child"]
            env = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
            output = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            row = json.loads(output.stdout.splitlines()[-1])
            rows.append(row)
            number, size = row["collectives"].get("all-reduce", (0, 0))
            others = row["collectives"].keys() - {"all-reduce"}
            print(
                f"| {name} | {count} | {row['batch']} | {1e3 * row['seconds_per_step']:.1f} "
                f"| {1e3 * row['cpu_seconds_per_step']:.1f} "
                f"| {number}: {size / 1e3:.1f}{' and ' * bool(others)}{', '.join(others)} "
                f"| {row['parameter_bytes'] / 1e3:.1f} kB |",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
