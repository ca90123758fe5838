"""Times inference on the CPU: flaxcnn with BatchNorm folded and not, and PyTorch in eval().

    python benchmarks/inference.py --models resnet50,mobilenet_v2 --json inference.json

Float32, logits of whole batches. As in train_step.py every side is a process of its own, and in
each round every side in turn runs alone; ratios are medians over rounds of the ratio within one.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
from pathlib import Path

from networks import NETWORKS
from train_step import FLAXCNN, TORCH_EAGER, Side, describe_machine, measure

from flaxcnn.memory import keep_freed_memory

FOLDED = "flaxcnn folded"
MODELS = [name for name in NETWORKS if name != "alexnet"]


def prepare(side: str, model: str, batch: int, threads: int):
    """Builds and compiles one side, in the process that will run it: (run, what is known, 0)."""
    if side in TORCH_EAGER:
        import torch
        import torch_side

        torch.set_num_threads(threads)
        return *torch_side.prepare_inference(NETWORKS[model], batch, TORCH_EAGER[side]), 0.0
    import jax_side

    keep_freed_memory()
    return *jax_side.prepare_inference(model, batch, side == FOLDED), 0.0


def measure_model(model: str, batch: int, args: argparse.Namespace) -> dict:
    """Measures one network at one batch; everything that is known of it, ready for JSON."""
    sides = []
    try:
        for name in (FLAXCNN, FOLDED, *(TORCH_EAGER if args.torch else ())):
            side = Side(name, (model, batch, args.threads), args.limit, prepare)
            sides.append(side)
            if side.known["params"] != NETWORKS[model].params:
                raise ValueError(f"{name}: {side.known['params']} parameters")
            side.estimate = side.run(1)
            side.steps = math.ceil(args.min_seconds / side.estimate)
        measure(sides, args.repeats)
    finally:
        for side in sides:
            side.close()
    rounds = {side.name: side.rounds for side in sides}
    best = min(TORCH_EAGER, key=lambda n: statistics.median(rounds[n])) if args.torch else None
    pairs = [(FLAXCNN, best), (FOLDED, best), (FOLDED, FLAXCNN)]
    return {
        "batch": batch,
        "best_torch": best,
        "images_per_second": {n: batch / statistics.median(times) for n, times in rounds.items()},
        "ratios": {
            f"{ours} / {other if other == FLAXCNN else 'torch'}": statistics.median(
                b / a for a, b in zip(rounds[ours], rounds[other], strict=True)
            )
            for ours, other in pairs
            if other
        },
        "instructions": {s.name: s.known["instructions"] for s in sides if s.name in pairs[2]},
        "compile_seconds": {s.name: s.known["compile_seconds"] for s in sides},
        "seconds_per_batch": rounds,
    }


def format_table(results: list[dict]) -> str:
    """Formats the results as a Markdown table; "-" where PyTorch did not run."""
    header = ("network", "batch", "folded img/s", "/ PyTorch", "not folded / PyTorch")
    header += ("folded / not", "PyTorch img/s", "PyTorch as", "instructions (folded, not)")
    rows = [header, ["---"] * len(header)]
    for result in results:
        speeds, ratios = result["images_per_second"], result["ratios"]
        shown = [ratios.get(f"{FOLDED} / torch"), ratios.get(f"{FLAXCNN} / torch")]
        shown += [ratios[f"{FOLDED} / {FLAXCNN}"]]
        best, counts = result["best_torch"], result["instructions"]
        rows.append(
            [
                *(result["model"], str(result["batch"]), f"{speeds[FOLDED]:.1f}"),
                *("-" if ratio is None else f"{ratio:.2f}" for ratio in shown),
                *((f"{speeds[best]:.1f}", best) if best else ("-", "-")),
                f"{counts[FOLDED]}, {counts[FLAXCNN]}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parse_flags() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="all", help=f"of {', '.join(MODELS)}; all (default)")
    parser.add_argument("--batch", default="1,8,32", help="sizes with commas (default: 1,8,32)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: 9)")
    parser.add_argument("--min-seconds", type=float, default=0.5, help="of a side in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=600, help="seconds to get a side ready")
    parser.add_argument("--json", type=Path, help="file for the results, written after each row")
    args = parser.parse_args()
    args.models = MODELS if args.models == "all" else args.models.split(",")
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(MODELS)}")
    return args


def main() -> None:
    """Measures the networks asked for, at each batch, one after the other."""
    args = parse_flags()
    os.environ["NPROC"] = str(args.threads)  # XLA's threads, in every side
    args.torch = importlib.util.find_spec("torch") is not None
    machine, results = describe_machine(args.threads), []
    print(json.dumps(machine), flush=True)
    for model in args.models:
        for batch in map(int, args.batch.split(",")):
            result = {"model": model, **measure_model(model, batch, args)}
            results.append(result)
            said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
            print(f"{model}, batch {batch}: {said}", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(format_table(results))


if __name__ == "__main__":
    main()
