"""Learning rates over a run, and what the history of validation results decides.

The functions of a history keep no state, so a resumed run decides what an uninterrupted one did.
"""

import math
from collections.abc import Sequence

import optax

from flaxcnn.errors import UserError
from flaxcnn.training.config import OptimizerConfig

# The fields of `ScheduleConfig` that each one uses; all have the peak and a warm-up.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("boundaries", "decay_rate"),
    "exponential": ("decay_rate", "decay_epochs", "final_fraction"),
    "cosine": ("final_fraction",),
    "linear": ("final_fraction",),
    "polynomial": ("power", "final_fraction"),
    "one_cycle": ("final_fraction",),
    "plateau": ("patience", "decay_rate"),
}


def make_schedule(config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates done, 0 at the first.

    Warm-up is linear from `initial_fraction` of the peak to the schedule's first value, in
    `warmup_epochs` (Goyal 2017, section 2.2); the schedule takes up what is left of the run.
    `step` counts its boundaries from the start of the run, and those past its end never come.
    Cosine (Loshchilov 2017), linear, polynomial and one-cycle (Smith 2018: up from 1/25 of the
    peak in 30 %, then cosine) reach `final_fraction` of the peak at the end; exponential never
    falls below it. `plateau` is constant here: `plateau_scale` says what its updates are to be
    multiplied by.

    Raises:
        UserError: an unknown schedule, or a field out of range.
    """
    warmup_steps = round(config.schedule.warmup_epochs * steps_per_epoch)
    _check(config, epochs, warmup_steps < steps_per_epoch * epochs)
    main = _make_main(config, steps_per_epoch, warmup_steps, steps_per_epoch * epochs)
    if warmup_steps == 0:
        return main
    start = config.learning_rate * config.schedule.initial_fraction
    warmup = optax.linear_schedule(start, main(0), warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def _make_main(
    config: OptimizerConfig, steps_per_epoch: int, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """The schedule after the warm-up; its step 0 is the first step without it."""
    schedule, peak = config.schedule, config.learning_rate
    final = peak * schedule.final_fraction
    steps = total_steps - warmup_steps
    match schedule.name:
        case "constant" | "plateau":
            return optax.constant_schedule(peak)
        case "step":
            jumps = [round(b * steps_per_epoch) - warmup_steps for b in schedule.boundaries]
            return optax.piecewise_constant_schedule(
                peak, {jump: schedule.decay_rate ** jumps.count(jump) for jump in jumps}
            )
        case "exponential":
            per_epoch = schedule.decay_rate ** (1.0 / schedule.decay_epochs)
            return optax.exponential_decay(peak, steps_per_epoch, per_epoch, end_value=final)
        case "cosine":
            return optax.cosine_decay_schedule(peak, steps, schedule.final_fraction)
        case "linear":
            return optax.linear_schedule(peak, final, steps)
        case "polynomial":
            return optax.polynomial_schedule(peak, final, schedule.power, steps)
        case "one_cycle":
            start = 25.0
            end = 1.0 / (start * schedule.final_fraction) if schedule.final_fraction else math.inf
            return optax.cosine_onecycle_schedule(
                steps, peak, pct_start=0.3, div_factor=start, final_div_factor=end
            )
    known = ", ".join(SCHEDULES)
    raise UserError(f"optimizer.schedule.name={schedule.name!r}: must be one of {known}")


def _check(config: OptimizerConfig, epochs: int, warmup_ends: bool) -> None:
    """Raise UserError for a field that its schedule cannot use."""
    if not 0.0 <= config.learning_rate < math.inf:
        raise UserError(f"optimizer.learning_rate={config.learning_rate}: must not be negative")
    schedule = config.schedule
    decays = schedule.name in ("step", "exponential", "plateau")
    ascending = sorted(set(schedule.boundaries)) == list(schedule.boundaries)
    after_warmup = all(boundary > schedule.warmup_epochs for boundary in schedule.boundaries)
    requirements = [
        ("initial_fraction", "be in 0..1", 0.0 <= schedule.initial_fraction <= 1.0),
        (
            "initial_fraction",
            "be 0 without warmup_epochs",
            schedule.initial_fraction == 0.0 or schedule.warmup_epochs > 0.0,
        ),
        ("final_fraction", "be in 0..1", 0.0 <= schedule.final_fraction <= 1.0),
        (
            "warmup_epochs",
            f"be >= 0 and < epochs={epochs}",
            0.0 <= schedule.warmup_epochs and warmup_ends,
        ),
        ("decay_rate", "be between 0 and 1", not decays or 0.0 < schedule.decay_rate < 1.0),
    ]
    match schedule.name:
        case "step":
            proper = schedule.boundaries and ascending and after_warmup
            rule = "be ascending epochs after the warm-up"
            requirements.append(("boundaries", rule, bool(proper)))
        case "exponential":
            requirements.append(("decay_epochs", "be positive", schedule.decay_epochs > 0.0))
        case "polynomial":
            requirements.append(("power", "be positive", schedule.power > 0.0))
        case "plateau":
            requirements.append(("patience", "be at least 1", schedule.patience >= 1))
    for field, rule, holds in requirements:
        if not holds:
            raise UserError(f"optimizer.schedule.{field}={getattr(schedule, field)}: must {rule}")


def plateau_scale(validation_losses: Sequence[float], patience: int, factor: float) -> float:
    """What to multiply the updates by after these per-epoch validation losses.

    `factor` once for every `patience` epochs in a row without a loss lower than the lowest so far
    by more than 1e-4, as Keras' ReduceLROnPlateau with `min_delta=1e-4` and no cooldown. NaN is no
    improvement.
    """
    scale, best, waited = 1.0, math.inf, 0
    for loss in validation_losses:
        if loss < best - 1e-4:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            scale, waited = scale * factor, 0
    return scale


def should_stop(history: Sequence[float], patience: int, higher_is_better: bool) -> bool:
    """Whether the last `patience` epochs of a metric brought nothing better than before them.

    An equal value or a NaN is not better. `patience` 0 never stops.
    """
    best, waited = -math.inf, 0
    for value in history:
        score = value if higher_is_better else -value
        best, waited = (score, 0) if score > best else (best, waited + 1)
    return 0 < patience <= waited
