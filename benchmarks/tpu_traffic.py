"""Compiles training steps for a TPU v5e, without one, and reads what XLA says they move.

    python benchmarks/tpu_traffic.py resnet50 mobilenet_v2 --json tpu_traffic.json

The step is that of `train_step.py` (the networks of `networks.py`, SGD with momentum), in bfloat16
with float32 parameters, once over flaxcnn's layers and once over plain Flax's. Each is compiled by
libtpu, which needs no TPU, in a process of its own with a time limit: it can crash, and ResNet-50
takes 100 s on two quiet cores. jax and libtpu must fit: `pip install -e ".[tpu]"`. Nothing is run,
so these are bytes and not seconds; docs/tpu_traffic.md says what each figure means.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from networks import NETWORKS

SIDES = ("flaxcnn", "flax")
_FIGURES = ("traffic", "moves", "peak_memory", "compile_seconds")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
}


def compile_side(name: str, side: str, batch: int) -> dict:
    """Compiles one step, in this process, which must be libtpu's own."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.experimental import topologies
    from jax_side import infer_variables, make_model, make_train_step

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
    )
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])
    network, tx = NETWORKS[name], optax.sgd(1e-3, momentum=0.9)
    variables = infer_variables(network, side)
    params = variables.pop("params")
    images = jax.ShapeDtypeStruct((batch, *network.input_shape), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = (params, variables, jax.eval_shape(tx.init, params)), (images, labels)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), arguments
    )
    step = make_train_step(make_model(network, side, jnp.bfloat16), tx)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    cost, plan = compiled.cost_analysis(), compiled.memory_analysis()
    text = compiled.as_text()
    if folder := os.environ.get("TPU_TRAFFIC_TEXT"):  # a folder that keeps what is compiled
        (Path(folder) / f"{name}.{side}.txt").write_text(text)
    return {
        "traffic": cost["bytes accessed"] / batch,
        "moves": count_moves(text) / batch,
        "peak_memory": plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes,
        "compile_seconds": seconds,
    }


def count_moves(text: str) -> int:
    """What "bytes accessed" counts for moves between main and vector memory in a compiled program.

    These are slices (3 times their size, by jaxlib's own analysis of one) and copies (4 times),
    started ahead. What they move is counted again where it is computed or used.
    """
    total = 0
    for line in text.splitlines():
        if match := re.search(r" (slice|copy)-start\(", line):
            # slice: ((operand), result, context); copy: (result, operand, context)
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", line[: match.start()].partition(" = ")[2])
            dtype, shape = arrays[1]
            size = math.prod(int(length) for length in shape.split(",") if length)
            total += {"slice": 3, "copy": 4}[match[1]] * size * _BYTES[dtype]
    return total


def run_child(name: str, side: str, batch: int, limit: float) -> dict:
    """Compiles one step in a process of its own; {"error": one line} if that fails."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a cached step has no compile time
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
    }
    command = [sys.executable, __file__, name, "--child", side, "--batch", str(batch)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled within {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"status {done.returncode}: {last[:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def format_row(name: str, side: str, row: dict) -> str:
    """Formats a row of the table."""
    if "error" in row:
        return f"| {name} | {side} | {row['error']} | | | |"
    traffic, moves, memory, seconds = (row[figure] for figure in _FIGURES)
    cells = [f"{traffic / 1e6:.1f}", f"{(traffic - moves) / 1e6:.1f}"]
    cells += [f"{memory / 2**30:.2f}", f"{seconds:.0f}"]
    return f"| {' | '.join([name, side, *cells])} |"


def write(path: Path, results: dict) -> None:
    """Adds results to those a file holds."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, sides in results.items():
        known.setdefault(name, {}).update(sides)
    path.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Compiles each network's step on each side, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet50"], metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--label", default="flaxcnn", help="another name for flaxcnn's side")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for a compilation")
    parser.add_argument("--json", type=Path, help="file that the results are added to")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(unknown)}; choose from {', '.join(NETWORKS)}")
    if args.child:
        print(json.dumps(compile_side(args.networks[0], args.child, args.batch)))
        return
    packages = ("jax", "jaxlib", "libtpu", "flax")
    known = {package: importlib.metadata.version(package) for package in packages}
    known |= {"date": str(datetime.date.today()), "batch": args.batch}
    print(*(f"{key} {value}" for key, value in known.items()), sep=", ")
    print("| network | side | MB per image | without moves | memory GiB | compile s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.networks:
        for side in args.sides:
            row = run_child(name, side, args.batch, args.limit)
            label = args.label if side == "flaxcnn" else side
            print(format_row(name, label, row), flush=True)
            if args.json:
                write(args.json, {name: {label: row | known}})


if __name__ == "__main__":
    main()
