"""The engine: one pure step, many steps per call, exact evaluation, bit-exact resume."""

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


def __getattr__(name: str):
    # Config files import this package: the engine's own imports wait until it is asked for.
    if name == "run":
        from flaxcnn.training.loop import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
