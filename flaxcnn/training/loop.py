"""The training loop: starts the run of a config in a folder, or resumes the one there."""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.memory import keep_freed_memory
from flaxcnn.training.begin import begin, open_checkpoints, restore_or_start, send_missing
from flaxcnn.training.budget import Budget
from flaxcnn.training.checkpoint import Checkpoints, History
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.evaluate import Evaluator
from flaxcnn.training.experiment import Experiment, check_stages
from flaxcnn.training.logger import Logger, NoLogger
from flaxcnn.training.loss_scale import LEAST
from flaxcnn.training.mirror import Mirror
from flaxcnn.training.parts import find_monitor
from flaxcnn.training.report import draw_missing, print_result, report_run
from flaxcnn.training.schedules import plateau_scale, should_stop
from flaxcnn.training.sessions import begin_session
from flaxcnn.training.sharding import (
    any_process,
    count_processes,
    from_first,
    is_first,
    on_first,
    together,
)
from flaxcnn.training.sinks import Sinks
from flaxcnn.training.stages import Stage, find_run, read_stages
from flaxcnn.training.state import TrainState, hash_tree
from flaxcnn.training.stop_signal import StopSignal
from flaxcnn.training.workdir import Workdir, absolute

OnValidation = Callable[[int, dict[str, float]], object]


def run(
    config: Config,
    workdir: str | Path,
    *,
    stop: Callable[[], bool] | None = None,
    started: float | None = None,
) -> dict[str, Any] | None:
    """Trains `config` in the folder `workdir` as `train` does, and prints the result.

    `run.budget` counts from `started` (of `time.monotonic`), from now unless given.
    """
    folder = Workdir(workdir)
    finished = folder.has("result")
    result = train(config, workdir, stop=stop, started=started)
    if not is_first():
        return result
    if result is None:
        print(f"stopped at a saved step; the same command again resumes ({folder.path})")
        return None
    if finished:
        print(f"{folder.path} holds this run, finished; its result:")
    figure = find_monitor(config).name if config.monitor != "loss" else "loss"
    for name, of_stage in result.get("stages", {}).items():
        print(f"stage {name}: {of_stage['split']} {figure} {of_stage[figure]:.4f}")
    print_result(Workdir(find_run(folder.path)))
    return result


def train(
    config: Config,
    workdir: str | Path,
    *,
    on_validation: OnValidation | None = None,
    stop: Callable[[], bool] | None = None,
    started: float | None = None,
) -> dict[str, Any] | None:
    """See `flaxcnn.training.train`, which takes a config's name, too; `started` as in `run`."""
    config = normalize(config)
    together(lambda: validate(config))
    if config.stages:
        return _train_stages(config, Workdir(workdir), on_validation, stop, started)
    return _train(config, Workdir(workdir), on_validation, stop, started)


def _train_stages(
    config: Config,
    folder: Workdir,
    on_validation: OnValidation | None,
    stop: Callable[[], bool] | None,
    started: float | None,
) -> dict[str, Any] | None:
    """Trains each stage in a folder of its own within `folder`, whose result is the last one's.

    The config is written once all stages have been checked: it is not done again.
    """
    stages = read_stages(config)
    opened = on_first(lambda: _begin_stages(config, folder, stages))
    started = time.monotonic() if started is None else started
    results: dict[str, Any] = {}
    with StopSignal() as signals:
        for number, stage in enumerate(stages, 1):
            if any_process(lambda: signals.requested or (stop is not None and stop())):
                return None
            place = Workdir(folder.path / stage.name)
            if not place.has("result"):
                _say(f"stage {number} of {len(stages)}: {stage.name}")
            result = _train(stage.config, place, on_validation, stop, started, opened)
            if result is None:
                return None
            results[stage.name], opened = result, None
    whole = {**results[stages[-1].name], "stages": results}
    on_first(lambda: folder.write("result", whole))
    return whole


def _begin_stages(config: Config, folder: Workdir, stages: Sequence[Stage]) -> Experiment | None:
    """What the first stage is made of, if none has begun."""
    if folder.has("run"):
        folder.check(config, str(folder.path), "--workdir")
    if folder.has("config"):
        folder.check(config, str(folder.path), "--workdir")
        return None
    opened = check_stages(stages, folder.path)
    folder.make()
    folder.write("config", to_dict(absolute(config)))
    return opened


def _train(
    config: Config,
    folder: Workdir,
    on_validation: OnValidation | None,
    stop: Callable[[], bool] | None,
    started: float | None,
    opened: Experiment | None = None,
) -> dict[str, Any] | None:
    """One run; `opened` as for `make_experiment`."""
    budget = Budget(config.run.budget, started)
    keep_freed_memory()
    with contextlib.ExitStack() as end:
        if not is_first():  # it has the files that the first process reads, and leaves nothing
            folder = Workdir(end.enter_context(tempfile.TemporaryDirectory()))
            own = dataclasses.replace(config.run, mirror="", sinks=())
            config = dataclasses.replace(config, run=own)
        mirror = together(lambda: Mirror(config.run.mirror, folder))
        lock = together(lambda: end.enter_context(folder.claim(config)))
        signals = end.enter_context(StopSignal())
        end.enter_context(mirror)
        together(lambda: mirror.restore(config))
        sinks = end.enter_context(Sinks(config.run.sinks, folder, to_dict(config)))

        def stopped(step: int, pruned: bool) -> bool:
            lock.check()
            saving = checkpoints.longest_save + mirror.seconds()
            epoch_ended = step % experiment.plan.steps_per_epoch == 0
            spent = budget.is_spent(saving, epoch_ended=epoch_ended)
            return pruned or spent or signals.requested or (stop is not None and stop())

        if from_first(folder.has("result")):
            if count_processes() == 1:
                draw_missing(config, folder)
            send_missing(config, sinks, folder)
            return from_first(folder.read("result") if is_first() else {})
        experiment = begin(config, folder, opened)
        changes = begin_session(folder)
        checkpoints = open_checkpoints(experiment, folder, mirror)
        try:
            start = restore_or_start(experiment, checkpoints, changes)
            budget.begin()
            figure = experiment.task.monitor.name

            def open_logger() -> Logger | NoLogger:
                if not is_first():
                    return NoLogger()
                return Logger(folder, experiment.plan, start[0], figure, sinks)

            state = _advance(experiment, checkpoints, start, stopped, on_validation, open_logger)
        finally:
            checkpoints.close()
        if state is None:
            return None
        report_run(experiment, folder, state)
        send_missing(config, sinks, folder)
        return from_first(folder.read("result") if is_first() else {})


def _advance(
    experiment: Experiment,
    checkpoints: Checkpoints,
    start: tuple[int, TrainState, History],
    stopped: Callable[[int, bool], bool],
    on_validation: OnValidation | None,
    open_logger: Callable[[], Logger | NoLogger],
) -> TrainState | None:
    """The final state, or None when asked to stop (the state is then saved)."""
    parallel, plan = experiment.parallel, experiment.plan
    step, state, history = start
    experiment.use_features(state.variables)
    if step == plan.total_steps or _finished_early(experiment, history):
        return state
    loop = Loop(experiment, history, parallel.replicate(state))
    _say("compiling ...")
    with open_logger() as logger, contextlib.ExitStack() as end:
        end.callback(checkpoints.wait)  # for the hash that the save under way logs
        if step == 0:
            logger.log_state(0)(hash_tree(state))
        for end_of_call in loop.calls(step, logger):
            saved, pruned = end_of_call == step, False
            if end_of_call % plan.steps_per_epoch == 0:
                row = loop.validate(end_of_call)
                logger.log_confusion(end_of_call, loop.confusion)
                logger.log_epoch(row)
                loop.save(checkpoints, logger, end_of_call, validated=True)
                saved = True
                pruned = bool(on_validation and row and on_validation(end_of_call, dict(row)))
                if _finished_early(experiment, history):
                    break
            elif loop.save_is_due(end_of_call):
                loop.save(checkpoints, logger, end_of_call, validated=False)
                saved = True
            asked = any_process(lambda: stopped(end_of_call, pruned))  # noqa: B023 (called at once)
            if asked and end_of_call < plan.total_steps:
                if not saved:
                    loop.save(checkpoints, logger, end_of_call, validated=False)
                return None
    return parallel.unreplicate(loop.state)


def _finished_early(experiment: Experiment, history: History) -> bool:
    """Whether `early_stopping` epochs have passed without a better `monitor`.

    Epochs that `--extend` has added are done, whatever they bring.
    """
    patience, monitor = experiment.config.early_stopping, find_monitor(experiment.config)
    if not patience or experiment.facts.extended:
        return False
    values = [row[monitor.name] for row in history]
    return should_stop(values, patience, higher_is_better=monitor.best == "max")


def _say(text: str) -> None:
    """Prints it, once for all processes."""
    if is_first():
        print(text, flush=True)


def lr_scale(config: Config, history: History) -> float:
    """What the plateau schedule has made of the rate so far; 1 with any other."""
    schedule = config.optimizer.schedule
    if schedule.name != "plateau":
        return 1.0
    losses = [row["loss"] for row in history]
    return plateau_scale(losses, schedule.patience, schedule.decay_rate)


class Loop:
    """The state on the devices and what moves it: calls, validation, saving."""

    def __init__(self, experiment: Experiment, history: History, state: TrainState):
        self.experiment, self.history, self.state = experiment, history, state
        splits = experiment.dataset.splits
        self._feeder = experiment.feeder(splits["train"])
        # One program for each size of the training images.
        self._program = functools.cache(functools.partial(experiment.train_call, self._feeder))
        self._compiled: set[tuple[int, int]] = set()  # programs and lengths of calls
        self._evaluate: Evaluator | None = None
        self.confusion: np.ndarray | None = None  # of the last validation
        if "validation" in splits:
            self._evaluate = experiment.evaluator(splits["validation"])

    def calls(self, step: int, logger: Logger | NoLogger):
        """Runs the plan's calls from `step` on; yields the step that each one ends at.

        The items of the next call are loaded while the devices work on this one.
        """
        parallel, plan = self.experiment.parallel, self.experiment.plan
        arrays = parallel.replicate(self._feeder.arrays)
        first_call = plan.call_at(step)
        with (
            contextlib.closing(self._feeder.feed(parallel.share(plan), first_call)) as feed,
            ThreadPoolExecutor(1) as watch,
        ):
            items = parallel.split(next(feed))
            for call in range(first_call, len(plan)):
                started = time.perf_counter()
                start, end = plan.first_step(call), plan.first_step(call + 1)
                program = self.experiment.stage_at(start)
                advance = self._program(program)
                self.state, metrics = advance(self.state, arrays, items, self._lr_scale())
                computed = watch.submit(_finish_time, metrics)
                if call + 1 < len(plan):
                    items = parallel.split(next(feed))
                fed = time.perf_counter()
                metrics = jax.device_get(metrics)
                seconds = time.perf_counter() - started
                waited = max(0.0, fed - computed.result())
                known = (program, end - start) in self._compiled
                self._compiled.add((program, end - start))
                self._log(logger, start, end, metrics, seconds if known else None, waited)
                yield end

    def _lr_scale(self) -> float:
        return lr_scale(self.experiment.config, self.history)

    def _log(
        self,
        logger: Logger | NoLogger,
        start: int,
        end: int,
        metrics: dict[str, Any],
        seconds: float | None,
        waited: float,
    ) -> None:
        plan = self.experiment.plan
        row: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        if row.get("skipped_steps") == end - start:  # in float16: nothing has been measured
            if row["loss_scale"] <= LEAST:
                raise UserError(
                    f"gradients are not finite in float16 between steps {start} and {end}, with no "
                    "scale of the loss: set precision to bfloat16 or float32, or lower "
                    "optimizer.learning_rate, in another --workdir"
                )
            row = {name: x if _is_finite(x) else None for name, x in row.items()}
        elif not all(map(_is_finite, row.values())):
            raise UserError(
                f"the loss is not finite between steps {start} and {end}: lower "
                "optimizer.learning_rate or set optimizer.clip.norm, in another --workdir"
            )
        schedule: Any = self.experiment.schedule
        rate = float(schedule(end - 1)) * self._lr_scale()
        where = {"step": end, "epoch": end / plan.steps_per_epoch}
        logger.log_train({**where, **row, "learning_rate": rate}, end - start, seconds, waited)

    def validate(self, step: int) -> dict[str, float] | None:
        """Measures the validation split and adds a row to the history; None without the split."""
        if self._evaluate is None:
            return None
        measured = self._evaluate(self.state.variables)
        figures, self.confusion = measured.figures, measured.confusion
        epoch = step // self.experiment.plan.steps_per_epoch
        self.history.append({"step": step, "epoch": epoch, **figures})
        return self.history[-1]

    def save_is_due(self, step: int) -> bool:
        """Whether the call that ends at `step` crossed a multiple of `run.save_every_steps`."""
        every = self.experiment.config.run.save_every_steps
        plan = self.experiment.plan
        start = plan.first_step(plan.call_at(step) - 1)
        return every > 0 and step // every > start // every

    def save(
        self, checkpoints: Checkpoints, logger: Logger | NoLogger, step: int, *, validated: bool
    ) -> None:
        """Saves the state at `step`; `validated` if the history's last row is of this step."""
        state = self.experiment.parallel.unreplicate(self.state)
        if not is_first():
            return
        checkpoints.save(
            step,
            state,
            self.history,
            validated=validated and self._evaluate is not None,
            on_hash=logger.log_state(step),
        )


def _finish_time(metrics: Any) -> float:
    """When the devices are done with them."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
