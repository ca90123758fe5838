"""Processor seconds that compiling a training step takes on CPU, flaxcnn's beside plain Flax's.

    python benchmarks/compile_time.py densenet121 --json compile_time.json

The step is that of `train_step.py` (the networks of `networks.py`, their batch, float32). Every
compilation is a process of its own, without a cache, one at a time. Seconds are the processor's,
of all threads of the process: on a machine that does other work they mean more than the clock's.
`lower` is tracing, `instructions` are those of XLA's compiled program.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from networks import NETWORKS

SIDES = ("flaxcnn", "flax")


def compile_side(name: str, side: str) -> dict:
    """Compiles one step, in this process."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax_side import infer_variables, make_model, make_train_step

    network, tx = NETWORKS[name], optax.sgd(1e-3, momentum=0.9)
    variables = infer_variables(network, side)
    params = variables.pop("params")
    state = params, variables, jax.eval_shape(tx.init, params)
    images = jax.ShapeDtypeStruct((network.batch, *network.input_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((network.batch,), jnp.int32)
    step = make_train_step(make_model(network, side), tx)
    times = [time.process_time()]
    lowered = jax.jit(step, donate_argnums=0).lower(state, (images, labels))
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    return {
        "lower": times[1] - times[0],
        "compile": times[2] - times[1],
        "instructions": compiled.as_text().count(" = "),
    }


def run_child(name: str, side: str) -> dict:
    """Compiles one step in a process of its own."""
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, name, "--child", side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compiles each network's step on each side, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path, help="file that the results are added to")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(unknown)}; choose from {', '.join(NETWORKS)}")
    if args.child:
        print(json.dumps(compile_side(args.networks[0], args.child)))
        return
    known = {package: importlib.metadata.version(package) for package in ("jaxlib", "flax")}
    known["date"] = str(datetime.date.today())
    print("| network | side | lower s | compile s | instructions |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.networks:
        for side in args.sides:
            row = run_child(name, side)
            seconds = f"{row['lower']:.1f} | {row['compile']:.1f}"
            print(f"| {name} | {side} | {seconds} | {row['instructions']} |", flush=True)
            if args.json:
                held = json.loads(args.json.read_text()) if args.json.exists() else {}
                held.setdefault(name, {})[side] = row | known
                args.json.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
