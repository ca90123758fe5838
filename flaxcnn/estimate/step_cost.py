"""What one training step takes, by compiling it for the shapes of its arguments.

XLA says what memory it has planned and what the program reads and writes; nothing is computed.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.analysis.memory_model import abstract_bytes
from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.sharding import make_parallel


@dataclass(frozen=True)
class Step:
    """What one optimizer update on one device takes; `batch_size` counts all devices' examples.

    Bytes of memory while it runs: `memory` in all; of it `state` (parameters, batch statistics,
    optimizer, averages) and `data` (a resident split, or the images of a call); without donation,
    which lets the new state take the old one's place, `donated` more. `traffic` is bytes read and
    written. Where XLA finds that it does not fit, `error` says so in one line, and of the last
    three only `memory` may be known.
    """

    batch_size: int
    memory: float | None
    state: float
    data: float
    flops: float
    traffic: float | None
    compile_seconds: float
    donated: float = 0.0
    error: str = ""


def at_batch(experiment: Experiment, batch_size: int, accumulate: int = 0) -> Experiment:
    """The experiment with another batch size, and with `accumulate` if it is given."""
    config = experiment.config
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        optimizer=dataclasses.replace(
            config.optimizer, accumulate=accumulate or config.optimizer.accumulate
        ),
    )
    return dataclasses.replace(experiment, config=config)


def choose_batches(experiment: Experiment, devices: int) -> list[int]:
    """The config's batch size, and the nearest to its half (else its double) that can be divided.

    A single one where an epoch has no more images.
    """
    batch, unit = (
        experiment.config.data.batch_size,
        devices * experiment.config.optimizer.accumulate,
    )
    if half := batch // (2 * unit) * unit:
        return [batch, half]
    return [batch] + [2 * batch] * (2 * batch <= len(experiment.draws))


def trace_call(experiment: Experiment, devices: Sequence[Any] = ()) -> tuple[Any, float]:
    """The traced training call for abstract arguments, and the bytes of data it is given.

    `pmap` is traced as `jit`: the same work, and the only one that compiles ahead of time.
    """
    experiment.parallel = make_parallel("jit", devices)
    data, split = experiment.config.data, experiment.dataset.splits["train"]
    example = split.load(np.arange(1))
    steps, batch = experiment.facts.steps_per_call, data.batch_size

    def stack(*leading: int):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype), example
        )

    pixels = len(split) * int(np.prod(experiment.facts.image_shape))
    if data.feeder == "resident" or (data.feeder == "auto" and pixels <= data.resident_limit):
        feeder, arrays = Resident, stack(len(split))
        items = jax.ShapeDtypeStruct((steps, batch), jnp.int32)
    else:
        feeder, arrays, items = Streaming, (), stack(steps, batch)
    call: Any = experiment.train_call(feeder)  # pyright: ignore[reportArgumentType] (its `batch`)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    traced = call.trace(experiment.abstract_state(), arrays, items, scale)
    return traced, abstract_bytes(arrays) + abstract_bytes(items) / experiment.parallel.num_devices


def count_flops(experiment: Experiment) -> float:
    """FLOPs of an update, over all devices, as XLA counts them before it optimizes.

    Two for a multiply-add; those on padding and the first layer's input gradient are none. XLA
    counts a loop's body once, so that of the steps of a call one is counted; micro-batches are not
    looped over here.
    """
    whole = at_batch(experiment, experiment.config.data.batch_size, accumulate=1)
    traced, _ = trace_call(whole, jax.devices()[:1])
    # As on an accelerator, where a convolution is one: for CPUs ours have forms of their own.
    return _analyze(traced.lower(lowering_platforms=("tpu",)))["flops"]


def compile_step(experiment: Experiment, devices: Sequence[Any] = ()) -> Step:
    """Compiles the step for `devices`, by default all of this process, and reads XLA's figures.

    Memory is what arguments, results, temporaries and code take together.
    """
    traced, data = trace_call(experiment, devices)
    count = experiment.parallel.num_devices
    state = abstract_bytes(experiment.abstract_state())
    flops = count_flops(experiment) / count
    batch, start = experiment.config.data.batch_size, time.perf_counter()
    lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, reason = time.perf_counter() - start, " ".join(str(error).split())
        used = re.search(r"Used ([\d.]+)([MG]) of", reason)
        memory = float(used[1]) * {"M": 2**20, "G": 2**30}[used[2]] if used else None
        reason = reason.partition(" Total")[0]
        return Step(batch, memory, state, data, flops, None, seconds, error=reason)
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    memory = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )
    traffic = _analyze(compiled)["bytes accessed"]
    # The body of the loop over micro-batches is counted once, and with it one update.
    micro = traffic - 2 * state
    traffic += max(0, micro) * (experiment.config.optimizer.accumulate - 1)
    return Step(
        batch, memory, state, data, flops, traffic, seconds, donated=plan.alias_size_in_bytes
    )


def _analyze(stage: Any) -> dict[str, float]:
    cost = stage.cost_analysis()
    return cost[0] if isinstance(cost, list) else cost
