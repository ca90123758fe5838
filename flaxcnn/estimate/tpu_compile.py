"""Compiles the training step for a TPU that is not here: libtpu needs none.

In a process of its own, this file: libtpu can crash, can take many minutes over one gradient, and
would take a TPU that is here away from this process. Only with the libtpu that the installed jax
pins: Colab's 0.0.21.1 beside jax 0.7.2 ends in a segmentation fault.
"""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.estimate.chips import Chip
from flaxcnn.estimate.step_cost import Step, at_batch, compile_step
from flaxcnn.training.environment import judge_libtpu
from flaxcnn.training.experiment import Experiment

TIME_LIMIT = 1200  # seconds; ResNet-50 takes 60 to 200, by the processor


def compile_for_tpu(
    experiment: Experiment, chip: Chip, batches: Sequence[int], limit: float = TIME_LIMIT
) -> tuple[list[Step], list[str]]:
    """A step per batch size, and why there are fewer, if so: no libtpu, a crash, the time limit.

    Raises UserError where libtpu is not the one that jax pins, or refuses the program.
    """
    if importlib.util.find_spec("libtpu") is None:
        return [], ["libtpu is not installed: the extra `tpu` brings it (on Linux, x86-64)"]
    if misfit := judge_libtpu():
        raise UserError(f"--chip {chip.name}: {misfit}. With another libtpu compiling crashes")
    parts = (experiment.config, experiment.dataset, experiment.facts)
    with subprocess.Popen(
        [sys.executable, "-m", "flaxcnn.estimate.tpu_compile"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    ) as child:
        notes = []
        try:
            out, log = child.communicate(pickle.dumps((parts, chip, list(batches))), limit)
        except subprocess.TimeoutExpired:
            child.kill()
            out, log = child.communicate()
            notes.append(f"libtpu was stopped after {limit:.0f} s")
        except BaseException:
            child.kill()
            raise
    steps = [Step(**json.loads(line)) for line in out.splitlines()]
    if child.returncode and not notes:
        lines = log.decode(errors="replace").strip().splitlines() or [""]
        notes.append(f"libtpu ended with status {child.returncode}: {lines[-1][:200]}")
    return steps, notes


def _environment() -> dict[str, str]:
    """For a process that compiles for a TPU and computes on the CPU, whatever is here."""
    # XLA_FLAGS are for the device here, and a step from the cache of compilations says nothing.
    dropped = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",  # there is no machine's metadata to ask for
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def _find_devices(chip: Chip) -> Sequence[Any]:
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", **(chip.topology or {}))
    return topology.devices


def _leave_with_parent(parent: int) -> None:
    """A compilation hears of no signal: one whose parent was ended would run to its end."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Reads the experiment and the batch sizes from stdin; writes a line of JSON for each."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    parts, chip, batches = pickle.load(sys.stdin.buffer)
    # libtpu writes to stdout, too.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    devices = _find_devices(chip)
    for batch in batches:
        step = compile_step(at_batch(Experiment(*parts), batch), devices)
        print(json.dumps(asdict(step)), file=results, flush=True)


if __name__ == "__main__":
    main()
