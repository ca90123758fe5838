"""A study: variations of one experiment, each trained with several seeds, compared in one report.

A study file's `get_study()` returns a `Study`. Every run is one of `flaxcnn train`, in a folder of
its own (`<workdir>/<case>/seed0`), so a study that was stopped resumes where it was, and each of
its rows can be repeated alone, bit for bit.
"""

import dataclasses
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.tasks.registry import find_task
from flaxcnn.training.config import Config
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_fields import change_fields
from flaxcnn.training.loop import train
from flaxcnn.training.workdir import Workdir

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: what all cases have in common; its seed is the first one.
      cases: by name, the fields ("optimizer.learning_rate") in which each differs from `config`.
      seeds: runs of each case, with consecutive seeds.
      quick: fields that `--quick` sets in every case, to see the study work in a few minutes.
      source: the figure (of classification the accuracy, 0..1) that the source gives for a case.
    """

    config: Config
    cases: Mapping[str, Fields]
    seeds: int = 3
    quick: Fields = dataclasses.field(default_factory=dict)
    source: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study and its folder."""

    case: str
    config: Config
    workdir: Path


def grid(values: Mapping[str, tuple[Any, ...]]) -> dict[str, Fields]:
    """All combinations of fields' values as cases: {"batch_size=32, name=adam": {...}, ...}."""
    cases = {}
    for chosen in itertools.product(*values.values()):
        fields = dict(zip(values, chosen, strict=True))
        name = ", ".join(f"{field.split('.')[-1]}={value}" for field, value in fields.items())
        cases[name] = fields
    return cases


def plan_runs(study: Study, workdir: Path, *, quick: bool = False) -> list[Run]:
    """The runs of `study` in order: every case with the first seed, then with the next.

    Raises UserError naming the case for a field or value that no run could start with.
    """
    if not isinstance(study, Study):
        raise UserError(f"get_study() must return a flaxcnn Study, got {type(study).__name__}")
    if study.seeds < 1 or not study.cases:
        raise UserError("a study needs at least one case and one seed")
    if unknown := sorted(set(study.source) - set(study.cases)):
        raise UserError(f"the study's source names no case: {unknown[0]!r}")
    folders = [_slug(case) for case in study.cases]
    if len(set(folders)) < len(folders):
        raise UserError(f"two cases would share a folder: {', '.join(folders)}")
    return list(_runs(study, workdir, study.quick if quick else {}))


def _runs(study: Study, workdir: Path, quick: Fields) -> Iterator[Run]:
    for seed in range(study.config.seed, study.config.seed + study.seeds):
        for case, fields in study.cases.items():
            try:
                config = change_fields(study.config, {**fields, **quick, "seed": seed})
                validate(config)
            except UserError as error:
                raise UserError(f"case {case!r}: {error}") from None
            place = Path(_slug(case), f"seed{seed}")
            if config.run.mirror:  # a mirror is of one run
                config.run.mirror = f"{config.run.mirror.rstrip('/')}/{place.as_posix()}"
            yield Run(case, config, workdir / place)


def _slug(case: str) -> str:
    """A case's name as that of a folder."""
    return re.sub(r"[^a-z0-9.+-]+", "_", case.lower()).strip("_.")


def carry_out(runs: list[Run]) -> bool:
    """Trains each run to its end, or skips it if it is finished; False if asked to stop.

    Raises UserError naming the case of a run that cannot be done.
    """
    spent, done = 0.0, 0
    for index, run in enumerate(runs):
        left = f", about {spent / done * (len(runs) - index) / 60:.0f} min left" if done else ""
        print(f"[{index + 1}/{len(runs)}{left}] {run.case}, seed {run.config.seed}", flush=True)
        start, new = time.perf_counter(), not Workdir(run.workdir).has("result")
        try:
            result = train(run.config, run.workdir)
        except UserError as error:
            raise UserError(f"case {run.case!r}, seed {run.config.seed}: {error}") from error
        if result is None:
            return False
        figure = find_task(run.config.task.name).monitor.name
        print(f"  {result['split']} {figure} {result[figure]:.4f}", flush=True)
        if new:
            spent, done = spent + time.perf_counter() - start, done + 1
    return True
