"""The reproducibility test that users run: 50 steps that must give the recorded bits.

Bits depend on the jaxlib, the machine type and the number of XLA's threads, so the hashes in
golden/digits.json are kept per (jaxlib, machine type) and the steps run with one thread (`NPROC=1`)
on the CPU. Where the pair is unknown, the loss curve is compared within a tolerance instead.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, FAILED
from flaxcnn.training.environment import machine_type

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "digits.json"
STEPS = 50
TOLERANCE = 1e-4  # 3.5e-7 was seen between jaxlib 0.10.1 and 0.12.0.1


def run(args: argparse.Namespace) -> int:
    """Runs the 50 steps and prints what agrees; FAILED if it is neither the bits nor the losses.

    With --record FILE the hash is added to that golden file instead, for a new jaxlib or machine.
    """
    jaxlib = importlib.metadata.version("jaxlib")
    pair = f"jaxlib {jaxlib}, {machine_type()}"
    measured = _run_with_one_thread()
    if args.record:
        _record(Path(args.record), pair, measured["sha256"])
        return DONE
    golden: dict[str, Any] = json.loads(GOLDEN_FILE.read_text())
    difference = max(
        abs(ours - theirs) / theirs
        for ours, theirs in zip(measured["losses"], golden["losses"], strict=True)
    )
    print(f"{STEPS} steps on digits, NPROC=1, {pair}")
    print(f"loss curve: largest relative difference {difference:.2e} (tolerance {TOLERANCE:g})")
    print(f"sha256 {measured['sha256']}")
    expected = golden["sha256"].get(pair)
    if expected is None:
        agrees = difference <= TOLERANCE
        print("no hash is recorded for this jaxlib and machine type: the loss curve decides")
    else:
        agrees = measured["sha256"] == expected
        print("the recorded hash" if agrees else f"recorded {expected}")
    print("reproduced" if agrees else "NOT reproduced; see `flaxcnn doctor`")
    return DONE if agrees else FAILED


def _record(file: Path, pair: str, sha256: str) -> None:
    try:
        golden = json.loads(file.read_text())
        golden["sha256"][pair] = sha256
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--record {file}: not a golden file ({error})") from error
    file.write_text(json.dumps(golden, indent=2) + "\n")
    print(f"recorded {sha256} for {pair} in {file}")


def _run_with_one_thread() -> dict[str, Any]:
    """The steps in a process of their own: XLA reads NPROC and its flags once, at its start."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    environment |= {"NPROC": "1", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # whose keys do not have the threads
    finished = subprocess.run(
        [sys.executable, "-m", "flaxcnn.commands.reproduce"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise UserError(f"the 50 steps failed: {finished.stderr.strip().splitlines()[-1]}")
    return json.loads(finished.stdout.splitlines()[-1])


def train_fixed_steps() -> dict[str, Any]:
    """Losses, the means of 5 steps each, and the SHA-256 of the final parameters."""
    from flaxcnn.training.config import (
        Config,
        DataConfig,
        ModelConfig,
        OptimizerConfig,
        ScheduleConfig,
    )
    from flaxcnn.training.experiment import Experiment
    from flaxcnn.training.parts import load_data
    from flaxcnn.training.state import hash_tree

    config = Config(
        model=ModelConfig(name="digits_cnn"),
        data=DataConfig(source="digits", batch_size=32),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.003, schedule=ScheduleConfig("constant")
        ),
        epochs=2,
        steps_per_call=5,
    )
    experiment = Experiment(config, load_data(config))
    feeder = experiment.feeder(experiment.dataset.splits["train"])
    call = experiment.train_call(feeder)
    state, losses = experiment.initial_state(), []
    for items in feeder.feed(experiment.plan):
        state, metrics = call(state, feeder.arrays, items, 1.0)
        losses.append(float(metrics["loss"]))
        if int(state.step) == STEPS:
            break
    return {"losses": losses, "sha256": hash_tree((state.params, state.batch_stats))}


if __name__ == "__main__":
    print(json.dumps(train_fixed_steps()))
