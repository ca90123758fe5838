"""Trackio, of Hugging Face: a project kept in TRACKIO_DIR on this machine."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio  # pyright: ignore[reportMissingImports]

from flaxcnn.training.sinks import flatten


class Tracker:
    """See `flaxcnn.training.sinks.Tracker`. Its runs are found by name, which must be new."""

    def __init__(self, place: str, name: str, config: Mapping[str, Any], run_id: str, folder: Path):
        self.run_id = run_id or f"{name.replace('/', '-')}-{secrets.token_hex(4)}"
        self._run = trackio.init(
            project=place,
            name=self.run_id,
            config=flatten(config),
            resume="allow",
            embed=False,
        )

    def reached(self, split: str) -> int:
        """It cannot say."""
        return 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, file: Path) -> None:
        """A PNG file."""
        self._run.log({file.stem: trackio.Image(str(file))}, step=step)

    def close(self, finished: bool) -> None:
        """Returns when all of it has been sent."""
        self._run.finish()
