"""The command `flaxcnn train`: a config by name or file, its fields as flags, the folder of a run.

The flags are ml_collections', whose names depend on the config; the other commands use argparse.
"""

import argparse
import re
import shlex
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_fields import check_field
from flaxcnn.training.config_file import find_file, list_files, run_file
from flaxcnn.training.config_help import describe_fields, format_rows
from flaxcnn.training.stop_signal import StopSignal

DEFAULT_CONFIG = "digits"
NO_REPORT = "--no-report"


def train(arguments: Sequence[str]) -> int:
    """The exit status: done, or stopped on request. Raises UserError for a mistake."""
    started = time.monotonic()
    if {"--help", "-h", "-help"} & set(arguments):
        print(_help())
        return DONE
    kept = [argument for argument in arguments if argument != NO_REPORT]
    processes, own = _processes_parser().parse_known_args(kept)
    try:
        config, workdir, added = parse(own)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    # After the flags: a wrong one is reported at once.
    from flaxcnn.commands.report import report_trained
    from flaxcnn.training import sharding
    from flaxcnn.training.extend import extend
    from flaxcnn.training.loop import run

    sharding.join(processes.coordinator, processes.num_processes, processes.process_id)
    with StopSignal() as signals, sharding.leaving():
        if added is not None:
            sharding.on_first(lambda: extend(config, workdir, added))
        result = run(config, workdir, started=started)
    if not sharding.is_first():
        return signals.status if result is None else DONE
    if result is None and config.run.budget:
        command = shlex.join(["flaxcnn", "train", *arguments])
        print(
            f"within the budget of {config.run.budget}; resume in a new session: run this same "
            f"cell again ({command})"
        )
    if result is not None and kept == list(arguments):
        report_trained(workdir)
    return signals.status if result is None else DONE


def _processes_parser() -> argparse.ArgumentParser:
    """The flags of one of several processes, which are no part of the run."""
    parser = argparse.ArgumentParser("flaxcnn train", add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    return parser


def _help() -> str:
    names = textwrap.fill(f"Configs by name: {', '.join(list_files())}", 100)
    usage = f"""usage: flaxcnn train [CONFIG] [--workdir DIR] [--config.FIELD=VALUE ...]

Trains a network. The same command again resumes the run in the workdir, to the same bits.

  CONFIG           name of a config that comes with flaxcnn, or a Python file whose get_config()
                   returns a Config (default: {DEFAULT_CONFIG}); also as --config CONFIG
  --workdir DIR    folder of the run (default: runs/<name of the config>)
  --mirror PATH    folder, gs://... or hf://USER/REPO to which each checkpoint is copied in the
                   background, and from which the same command resumes elsewhere (run.mirror)
  --budget TIME    "90s", "80m" or "11h": saves and ends (status 75) before it is over (run.budget)
  --no-report      leaves out the page that the run is described on at its end (report.html)
  --extend N       N more epochs for a run that is finished, at its final learning rate
  --coordinator HOST:PORT --num-processes N --process-id I
                   one of N processes of one run (docs/multi_host.md); not needed under srun, mpirun
  --config.FIELD=VALUE
                   another value of a field; --config.optimizer.kwargs.b2=0.95 adds a setting

{names}
Choices: flaxcnn list models, optimizers, schedules, losses, augmentations, views, configs

Fields, with their defaults:
"""
    return f"{usage}\n{format_rows([(f'{n}={v}', c) for n, v, c in describe_fields()])}"


def parse(arguments: Sequence[str]) -> tuple[Config, str, int | None]:
    """The config with its overrides, the workdir (default: runs/<name of the config>), --extend.

    Raises UserError or absl's flags.Error for what is no config, field or value.
    """
    name, rest = _split(arguments)
    for argument in rest:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            check_field(match[1])
    file = find_file(name)
    config, _ = run_file(file, "get_config")
    if not isinstance(config, Config):
        raise UserError(
            f"{file}: get_config() must return a flaxcnn Config, got {type(config).__name__}"
        )
    argv = ["flaxcnn", *rest]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dataclass(
        "config",
        config,
        flag_values=values,
        sys_argv=argv,
        accept_new_attributes=True,  # keys of the kwargs; check_field has refused all others
    )
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_integer("extend", None, "Epochs to add to a finished run.", flag_values=values)
    flags.DEFINE_string("mirror", None, "Where checkpoints are copied to.", flag_values=values)
    flags.DEFINE_string("budget", None, "Time within which to save and end.", flag_values=values)
    if unread := values(argv)[1:]:
        raise UserError(f"unexpected argument {unread[0]!r}; flags begin with --")
    for flag in ("mirror", "budget"):
        if values[flag].present:
            setattr(values.config.run, flag, values[flag].value)
    workdir = values.workdir or str(Path("runs") / file.stem)
    return normalize(values.config), workdir, values.extend


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The config's name, wherever it stands, and the flags.

    A word after a flag without `=` is that flag's value.
    """
    names, rest, waiting = [], [], ""  # the flag that still waits for its value
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            waiting = "" if equals else flag
            names += [value] if equals else []
        elif word.startswith("-"):
            waiting = "" if equals else flag
            rest.append(word)
        else:
            (rest if waiting not in ("", "--config", "-config") else names).append(word)
            waiting = ""
    if waiting in ("--config", "-config"):
        raise UserError("--config needs a name or a file")
    if len(names) > 1:
        raise UserError(f"two configs are given, {names[0]!r} and {names[1]!r}")
    return (names or [DEFAULT_CONFIG])[0], rest
