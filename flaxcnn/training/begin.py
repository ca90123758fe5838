"""How a session of a run begins: its parts, its checkpoints, the state that it starts from.

Where there are several processes the first decides, and the others are sent what they need.
"""

import sys
from fractions import Fraction

from flaxcnn.tasks.registry import find_task
from flaxcnn.training.checkpoint import Checkpoints, History
from flaxcnn.training.config import Config
from flaxcnn.training.environment import find_warnings
from flaxcnn.training.experiment import Experiment, make_experiment
from flaxcnn.training.logger import read_rows
from flaxcnn.training.mirror import Mirror
from flaxcnn.training.parts import find_monitor
from flaxcnn.training.report import CURVES, print_start
from flaxcnn.training.sharding import from_first, is_first, on_first, together, tree_from_first
from flaxcnn.training.sinks import Sinks
from flaxcnn.training.state import TrainState
from flaxcnn.training.workdir import Workdir


def begin(config: Config, folder: Workdir, opened: Experiment | None) -> Experiment:
    """The run's parts; other processes than the first take them as that one has recorded them."""
    for warning in find_warnings():
        print(f"WARNING: {warning}", file=sys.stderr)
    own = on_first(lambda: make_experiment(config, folder, opened))
    names = ("config", "run", "splits")
    files = from_first({name: folder.read(name) for name in names if folder.has(name)})
    if not is_first():
        for name, content in files.items():
            folder.write(name, content)
    experiment = together(lambda: own or make_experiment(config, folder))
    if is_first():
        for warning in experiment.warnings():
            print(f"WARNING: {warning}", file=sys.stderr)
        print_start(experiment)
    return experiment


def open_checkpoints(experiment: Experiment, folder: Workdir, mirror: Mirror) -> Checkpoints:
    """Those of the run, as `run.*` wants them kept; each that is written goes to the mirror."""
    config, run = experiment.config, experiment.config.run
    planned = config.epochs * experiment.plan.steps_per_epoch
    return Checkpoints(
        folder.checkpoints,
        run.keep_last,
        run.keep_best,
        find_monitor(config),
        keep_every=run.keep_every or Fraction(planned, 5),
        on_saved=mirror.update,
    )


def restore_or_start(
    experiment: Experiment, checkpoints: Checkpoints, changes: list[str] | None
) -> tuple[int, TrainState, History]:
    """Step, state and history; `changes` are those since the session before, if there was one."""

    def find() -> tuple[int, TrainState, History]:
        restored = checkpoints.restore_latest(experiment.abstract_state())
        if restored is None:
            if changes is not None:
                print("the run was ended before its first checkpoint: it starts again")
            return 0, experiment.initial_state(), []
        print(f"resuming from step {restored[0]} of {experiment.plan.total_steps}", flush=True)
        if changes:
            print(
                f"WARNING: since the session before, {'; '.join(changes)}: the bits may differ "
                "from those of an uninterrupted run",
                file=sys.stderr,
            )
        return restored

    step, state, history = on_first(find) or (0, None, [])
    step, history = from_first((step, history))
    return step, tree_from_first(state, experiment.abstract_state), history


def send_missing(config: Config, sinks: Sinks, folder: Workdir) -> None:
    """Sends what a tracker lacks of a finished run."""
    if config.run.sinks:
        for row in read_rows(folder):
            sinks.log(row)
        pictures = (CURVES, *find_task(config.task.name).pictures)
        sinks.finish(folder.read("result"), [folder.path / file for file in pictures])
