"""What a run will cost, before its first step: memory, time, the largest batch that fits.

The step is compiled, not run. Seconds are the roofline's (Williams 2009): what the arithmetic alone
or the memory's traffic alone takes at the chip's peak rates.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from flaxcnn.errors import UserError
from flaxcnn.estimate.chips import Chip, find_chip, present_chip
from flaxcnn.estimate.step_cost import Step, at_batch, choose_batches, compile_step
from flaxcnn.estimate.step_model import reckon_step
from flaxcnn.estimate.tpu_compile import compile_for_tpu
from flaxcnn.estimate.unread import forget_images, open_unread
from flaxcnn.training.config import Config
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.start import Source, find_reading

# Of the roofline's speed, what good trainings of CNNs reach: the fastest ResNet-50 published for an
# A100 runs at 0.56 of what its memory's traffic allows, records on CIFAR-10 at 0.4.
EFFICIENCY = 0.5
_SHORT = 2e-3  # seconds; a step has hundreds of operations, which start in microseconds each


@dataclass(frozen=True)
class Estimate:
    """What `estimate` finds; None where it cannot be known. Bytes and seconds."""

    step: Step
    method: str  # "compiled": XLA's plan for the chip; "model": reckoned from the program's text
    chip: str
    devices: int
    capacity: float
    fits: bool | None
    largest_batch: int | None
    largest_batch_by: str
    steps_per_epoch: int
    epochs: int
    arithmetic_seconds: float | None  # of a step, at the peak rate
    traffic_seconds: float | None
    session: float | None  # seconds
    notes: tuple[str, ...] = ()

    @property
    def step_seconds(self) -> float | None:
        """The roofline: no step is faster."""
        known = [x for x in (self.arithmetic_seconds, self.traffic_seconds) if x is not None]
        return max(known, default=None)

    @property
    def epoch_seconds(self) -> float | None:
        """Of training alone, at the roofline."""
        return None if self.step_seconds is None else self.step_seconds * self.steps_per_epoch

    @property
    def run_seconds(self) -> float | None:
        """Of training alone, at the roofline."""
        return None if self.epoch_seconds is None else self.epoch_seconds * self.epochs

    @property
    def session_epochs(self) -> float | None:
        """Epochs that a session holds at the most."""
        if self.session is None or not self.epoch_seconds:
            return None
        return self.session / self.epoch_seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        derived = ("step_seconds", "epoch_seconds", "run_seconds", "session_epochs")
        values = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        return values | {"efficiency_of_good_trainings": EFFICIENCY}


def parse_duration(text: str) -> float:
    """Seconds of "80m", "1h30m", "45s". Raises UserError for anything else, and for none at all."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    units = zip(match.groups(default="0"), (3600, 60, 1), strict=True) if match else ()
    seconds = sum(float(number) * unit for number, unit in units)
    if not seconds:
        raise UserError(f"--session must be a time such as 80m, 1h30m or 45s, got {text!r}")
    return seconds


def without_weights(config: Config, before: Config | None = None) -> Config:
    """The config with first weights of its own, and images of the size that `model.weights` want.

    `before` is what this gave for the stage before. Published weights are found for that, and so
    downloaded if they are not here; they are not read.
    """
    data, weights = config.data, config.model.weights
    if data.normalization == "weights":
        if before is not None and weights.startswith("previous:"):
            size, channels = before.data.image_size, before.data.channels
        else:
            reading = find_reading(config, Source(config).start)
            assert reading is not None
            size, channels = reading.image_size, reading.channels
        data = dataclasses.replace(
            data,
            normalization="auto",
            image_size=data.image_size or size,
            channels=data.channels or channels,
        )
    return dataclasses.replace(
        config, data=data, model=dataclasses.replace(config.model, weights="")
    )


def estimate_config(
    config: Config, *, chip_name: str | None = None, session: float | None = None
) -> Estimate:
    """The estimate of a run of `config` on one chip of that name, by default on the devices here.

    Compiled on the chip if it is here. A TPU that is not is compiled for by libtpu, in a process of
    its own; for other chips, or where that fails, the step is reckoned by a model. `session` is in
    seconds. Raises UserError for what the config gets wrong, an unknown chip, or a libtpu that
    belongs to another jax.
    """
    here = present_chip()
    chip = find_chip(chip_name) if chip_name not in (None, here.name) else here
    dataset = open_unread(config)
    facts = Experiment(config, dataset).facts
    experiment = Experiment(config, forget_images(dataset), facts)
    devices = jax.devices(chip.platform) if chip.platform == "cpu" else jax.devices()
    count = len(devices) if chip is here else 1
    batches, notes, steps = choose_batches(experiment, count), [], []
    if chip is here or chip.platform == "cpu":
        steps = [compile_step(at_batch(experiment, batch), devices[:count]) for batch in batches]
    elif chip.platform == "tpu":
        steps, notes = compile_for_tpu(experiment, chip, batches)
    else:
        notes = [f"there is no {chip.title} here to compile for"]
    method = "compiled" if steps else "model"
    steps = steps or [reckon_step(at_batch(experiment, batch)) for batch in batches]
    return assess(
        experiment, chip, steps, method=method, devices=count, session=session, notes=notes
    )


def assess(
    experiment: Experiment,
    chip: Chip,
    steps: Sequence[Step],
    *,
    method: str,
    devices: int = 1,
    session: float | None = None,
    notes: Sequence[str] = (),
) -> Estimate:
    """The estimate from the steps at one or two batch sizes, the config's first."""
    step = steps[0]
    largest, by = _largest_batch(experiment, chip, steps, devices)
    rate = chip.flops.get(experiment.config.precision)
    arithmetic = step.flops / rate if rate else None
    traffic = step.traffic / chip.bandwidth if step.traffic and chip.bandwidth else None
    notes = [*notes, *_caveats(experiment, chip, step, max(arithmetic or 0, traffic or 0))]
    return Estimate(
        step=step,
        method=method,
        chip=chip.title,
        devices=devices,
        capacity=chip.memory,
        fits=False if step.error else None if step.memory is None else step.memory <= chip.memory,
        largest_batch=largest,
        largest_batch_by=by,
        steps_per_epoch=experiment.plan.steps_per_epoch,
        epochs=experiment.config.epochs,
        arithmetic_seconds=arithmetic,
        traffic_seconds=traffic,
        session=session,
        notes=tuple(notes),
    )


def _caveats(experiment: Experiment, chip: Chip, step: Step, seconds: float) -> list[str]:
    """What of this run the figures leave out, a line each."""
    found = [step.error] if step.error else []
    if not chip.flops:
        found.append(f"the rates of {chip.title} are not known: no times")
    elif chip.platform == "cpu":
        found += [
            "the rates of a CPU are rough: nominal ones of its vectors, times the threads",
            "what XLA's convolutions take on a CPU while they run is not in its plan of the memory",
        ]
    elif seconds < _SHORT:
        found.append(
            "a step this short takes longer: starting each of its operations is left out here"
        )
    return found


def _largest_batch(
    experiment: Experiment, chip: Chip, steps: Sequence[Step], devices: int
) -> tuple[int | None, str]:
    """By the line through two batch sizes; at most an epoch's images."""
    known = [(step.batch_size, step.memory) for step in steps if step.memory is not None]
    if len(known) < 2:
        return None, "a second batch size has not been compiled"
    (first, more), (second, less) = known
    by = f"by the line through the memory at {second} and {first}"
    slope = (more - less) / (first - second)
    if slope <= 0:
        return None, f"the memory is the same at {second} and {first}"
    unit = devices * experiment.config.optimizer.accumulate
    most = int(first + (chip.memory - more) / slope)
    images = len(experiment.draws)
    if most >= images:
        return images // unit * unit, f"all images of an epoch, {by}"
    digits = 10 ** max(0, int(math.log10(max(most, 1))) - 1)  # two of them say enough
    return max(0, most // digits * digits // unit * unit), by
