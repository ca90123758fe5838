"""The engine: one pure step, many steps per call, exact evaluation, bit-exact resume."""

from pathlib import Path
from typing import Any

from flaxcnn.training.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "run",
]


def run(config: Config, workdir: str | Path) -> dict[str, Any] | None:
    """See `flaxcnn.training.loop.run`."""
    # Config files import this package: the engine's own imports wait until it is used.
    from flaxcnn.training.loop import run

    return run(config, workdir)
