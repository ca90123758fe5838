"""The engine: one pure step, many steps per call, exact evaluation, bit-exact resume."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxcnn.training.config import (
    BalanceConfig,
    ClipConfig,
    Config,
    DataConfig,
    LookaheadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TaskConfig,
)
from flaxcnn.training.config_file import load_config

if TYPE_CHECKING:
    from flaxcnn.training.probe import Probe

__all__ = [
    "BalanceConfig",
    "ClipConfig",
    "Config",
    "DataConfig",
    "LookaheadConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "TaskConfig",
    "linear_probe",
    "load_config",
    "run",
    "train",
]


def train(
    config: Config | str | Path,
    workdir: str | Path,
    *,
    on_validation: Callable[[int, dict[str, float]], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any] | None:
    """Trains a network in the folder `workdir`, from where the run in it stopped.

    For notebooks, threads and schedulers of jobs: it sets no option of JAX, and answers SIGTERM
    and Ctrl-C (by saving and returning) only where it is called in the main thread. Where
    `jax.distributed` is initialised every process calls it, with the same arguments, and gets the
    same result; the first writes and prints (docs/multi_host.md).

    Args:
      config: what to train: a `Config`, or the name or file of one ("digits", "my.py").
      workdir: the folder of the run; made where it is missing.
      on_validation: called after each epoch, once it is saved, as `on_validation(step, figures)`:
        the epoch's figures are step, epoch, and the metrics of the validation split (of
        classification accuracy and loss). True ends the run, as `stop` does; so does what it
        raises, which is raised here. Never called without a validation split.
      stop: asked after each call of a few steps: True saves the run and ends it.

    Returns:
      What result.json holds (split, accuracy, loss, steps, hash of the parameters, ...), or None if
      the run was stopped; called again, it is resumed, to the same bits. A finished run is left as
      it is.

    Raises:
      UserError: what the user has to change, in one line: a wrong field, missing data, a folder
        that belongs to another config, a full disk, a loss that is no longer finite.
    """
    # Config files import this package: the engine's own imports wait until it is used.
    from flaxcnn.training.loop import train

    config = config if isinstance(config, Config) else load_config(config)
    return train(config, workdir, on_validation=on_validation, stop=stop)


def linear_probe(
    config: Config | str | Path, strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0)
) -> "Probe":
    """Fits scikit-learn's LogisticRegression to the features of a config's frozen base.

    Features are those of `data.cache_features`, flattened and standardised: what the first module
    that `optimizer.freeze` does not hold is given, of `model.weights`. Of a config with stages it
    is the first. C is the one of `strengths` with the best accuracy on the validation split, of
    equal ones the first; without that split there has to be one. Nothing is random. Returns the
    fitted classifier (of float32 [N, F]), its C as `strength`, and `accuracy` by split.

    Raises UserError as training on features does.
    """
    from flaxcnn.training.probe import fit_probe

    return fit_probe(config if isinstance(config, Config) else load_config(config), strengths)


def run(config: Config, workdir: str | Path) -> dict[str, Any] | None:
    """Trains `config` in the folder `workdir` as `train` does, and prints the result."""
    from flaxcnn.training.loop import run

    return run(config, workdir)
