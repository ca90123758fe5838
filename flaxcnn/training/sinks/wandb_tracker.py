"""Weights & Biases: a project of one's own, or TEAM/PROJECT; WANDB_MODE=offline keeps it here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]


class Tracker:
    """See `flaxcnn.training.sinks.Tracker`."""

    def __init__(self, place: str, name: str, config: Mapping[str, Any], run_id: str, folder: Path):
        team, _, project = place.rpartition("/")
        self._run = wandb.init(
            entity=team or None,
            project=project,
            name=name,
            config=dict(config),
            id=run_id or None,
            resume="allow" if run_id else None,
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run_id = self._run.id

    def reached(self, split: str) -> int:
        """The last step that it has."""
        return max(0, self._run.step - 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, file: Path) -> None:
        """A PNG file."""
        self._run.log({file.stem: wandb.Image(str(file))}, step=step)

    def close(self, finished: bool) -> None:
        """Returns when all of it has been sent."""
        self._run.finish()
