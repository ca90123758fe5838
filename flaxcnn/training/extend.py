"""More epochs for a finished run, at its final learning rate: `flaxcnn train ... --extend N`."""

import dataclasses
from pathlib import Path

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.facts import Facts
from flaxcnn.training.logger import read_rows
from flaxcnn.training.mirror import Mirror
from flaxcnn.training.workdir import Workdir


def extend(config: Config, workdir: str | Path, epochs: int) -> None:
    """Records in run.json that the run of `config` in `workdir` is to train for `epochs` more.

    It is unfinished then, and is resumed as any other. The added epochs keep the rate of the last
    step, so that it does not become the run that would have been longer from the start. A run
    whose last extension, of as many epochs, is not finished yet stays as it is.

    Raises:
        UserError: no finished run of that config, one that stopped early, or one with lookahead,
            which is planned for the length of the run.
    """
    config = normalize(config)
    validate(config)
    if epochs < 1:
        raise UserError(f"--extend must be at least 1 epoch, got {epochs}")
    if config.stages:
        raise UserError(f"--extend {epochs}: a config with stages cannot be extended")
    folder = Workdir(workdir)
    with folder.claim(config):
        Mirror(config.run.mirror, folder).restore(config)
        if not folder.has("run"):
            raise UserError(f"--extend {epochs}: {folder.path} holds no run yet")
        facts = Facts.read(folder)
        if not folder.has("result"):
            if facts.extended[-1:] == [epochs]:
                return
            raise UserError(f"--extend {epochs}: the run in {folder.path} is not finished")
        if config.optimizer.lookahead.every:
            raise UserError(f"--extend {epochs}: optimizer.lookahead.every ends with the run")
        planned = config.epochs + sum(facts.extended)
        last = max(round(row["epoch"]) for row in read_rows(folder))
        if last < planned:
            raise UserError(
                f"--extend {epochs}: the run stopped early, after {last} of {planned} epochs"
            )
        # In this order: ended between the two, the run makes its result again.
        (folder.path / "result.json").unlink()
        extended = dataclasses.replace(facts, extended=[*facts.extended, epochs])
        folder.write("run", dataclasses.asdict(extended))
