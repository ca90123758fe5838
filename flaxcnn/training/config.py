"""What an experiment is: plain dataclasses that `ml_collections.config_flags` can override.

A config file's `get_config()` returns a `Config`. The classes are not frozen because the flag
library assigns to their fields; `validate` is called once, before anything is loaded or compiled.
The `kwargs` fields are `ConfigDict`s, so that `--config.model.kwargs.activation=tanh` can add one.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.data.augment import freeze_policy, read_policy, read_views
from flaxcnn.errors import UserError
from flaxcnn.tasks.registry import find_task


@dataclasses.dataclass
class ModelConfig:
    """Which network. `kwargs` go to `flaxcnn.create_model` beside `num_classes` and `dtype`."""

    name: str = "lenet5_dense"  # one of `flaxcnn list`
    kwargs: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # of the network

    def __post_init__(self):
        self.kwargs = ConfigDict(dict(self.kwargs))  # a plain dict will do; flags cannot add to it


def _keyed_by_name(values: Any) -> ConfigDict:
    """A plain dict will do; classes that are called 0, 1, ... may be written as numbers."""
    return ConfigDict({str(name): value for name, value in values.items()})


@dataclasses.dataclass
class BalanceConfig:
    """Which training images are kept, and how often an epoch shows those of each class."""

    sampler: str = "natural"  # classes of an epoch: "balanced", "sqrt" (of images), "repeat_factor"
    repeat_threshold: float = 0.001  # "repeat_factor": share below which a class is repeated
    expand: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # {class: extra copies}
    subsample: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # {class: share kept}

    def __post_init__(self):
        self.subsample, self.expand = map(_keyed_by_name, (self.subsample, self.expand))


@dataclasses.dataclass
class DataConfig:
    """Which images, how they are cut into splits and batches, and how they reach the device."""

    source: str = "digits"  # "digits", "tfds:<name>" or "folder:<path>"
    batch_size: int = 64  # examples per optimizer update, over all devices
    eval_batch_size: int = 256  # examples at a time, over all devices
    image_size: tuple[int, ...] = ()  # (height, width); () keeps the source's own size
    resize: str = "crop"  # "crop" (shorter side, centre), "stretch" or "pad"
    channels: int = 0  # 1 grey, 3 RGB, 0 as in the source
    split: tuple[float, ...] = (0.7, 0.15, 0.15)  # folders without train/validation/test
    validation: float = 0.1  # share of train held out when the source has no validation split
    on_bad_image: str = "error"  # or "skip": leave damaged images out and count them
    feeder: str = "auto"  # "resident" (on the device), "streaming", or by resident_limit
    resident_limit: int = 2**31  # bytes of uint8 images up to which "auto" is "resident"
    augment: tuple[Any, ...] = ()  # of the training images: (("flip",), ("rotate", 15)), in order
    augment_classes: tuple[str, ...] = ()  # only of the images of these; () is all classes
    views: tuple[Any, ...] = ()  # over which the final test averages: (("shift", 1), ("flip",))
    balance: BalanceConfig = dataclasses.field(default_factory=BalanceConfig)


@dataclasses.dataclass
class TaskConfig:
    """What is to be learnt; the settings of classification are the fields of `loss`."""

    name: str = "classification"  # the only one so far
    kwargs: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # of any other task

    def __post_init__(self):
        self.kwargs = ConfigDict(dict(self.kwargs))


@dataclasses.dataclass
class LossConfig:
    """What classification minimises."""

    name: str = "cross_entropy"  # "binary_cross_entropy", "focal", "mse"
    label_smoothing: float = 0.0  # cross-entropy and focal only
    focal_gamma: float = 2.0  # "focal": 0 is cross-entropy, more looks at hard examples only
    class_weights: str = "none"  # training loss by class, from draws: "balanced", "effective"
    effective_beta: float = 0.999  # "effective": 0 weighs nothing, near 1 is "balanced"
    auxiliary_weight: float = 0.3  # of each auxiliary classifier's loss (GoogLeNet, Inception-v3)


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the run, as shares of the peak. `flaxcnn list schedules` says more."""

    name: str = "cosine"  # one of `flaxcnn list schedules`
    warmup_epochs: float = 0.0  # linear, before any schedule
    initial_fraction: float = 0.0  # learning rate the warm-up starts from, as a share of the peak
    final_fraction: float = 0.0  # learning rate at the end, as a share of the peak
    boundaries: tuple[float, ...] = ()  # "step": epochs at which the rate is multiplied
    decay_rate: float = 0.1  # "step", "exponential" and "plateau" multiply by this
    decay_epochs: float = 1.0  # "exponential": once in this many epochs, continuously
    power: float = 2.0  # "polynomial"
    patience: int = 5  # "plateau": epochs without a lower validation loss


@dataclasses.dataclass
class ClipConfig:
    """What is cut off a gradient, in the order value, norm, adaptive; 0 clips nothing."""

    norm: float = 0.0  # 0 clips nothing; global norm (Pascanu 2013)
    value: float = 0.0  # each element
    adaptive: float = 0.0  # unit-wise, relative to the weights (Brock 2021)


@dataclasses.dataclass
class LookaheadConfig:
    """Weights that go back to a slow copy of them (Zhang 2019)."""

    every: int = 0  # steps after which weights go back to a slow copy; 0: never
    decay: float = 0.95  # how much of that copy is kept, per step, at the end


@dataclasses.dataclass
class OptimizerConfig:
    """The update rule, its schedule, and what happens to a gradient before it."""

    name: str = "momentum"  # one of `flaxcnn list optimizers`
    learning_rate: float = 0.05  # the peak, after warm-up
    kwargs: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # of the optax function
    weight_decay: float = 0.0  # kernels only: biases and norms are never decayed
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    accumulate: int = 1  # micro-batches per update; must divide the batch size
    ema_decay: float = 0.0  # 0 keeps no average; evaluation uses the average where there is one
    rates: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # {path pattern: factor}
    lookahead: LookaheadConfig = dataclasses.field(default_factory=LookaheadConfig)

    def __post_init__(self):
        self.kwargs, self.rates = ConfigDict(dict(self.kwargs)), ConfigDict(dict(self.rates))


@dataclasses.dataclass
class RunConfig:
    """How a run is looked after. Nothing here changes its result, so resuming may change it."""

    save_every_steps: int = 0  # 0: at the end of each epoch; else also every so many steps
    keep_last: int = 2  # newest checkpoints that are kept
    keep_best: int = 1  # and the best by `monitor`
    workers: int = 2  # processes that load images for the streaming feeder; 0: none


@dataclasses.dataclass
class Config:
    """One experiment: everything that changes its result, and in `run` what does not."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    epochs: int = 20
    seed: int = 0  # of everything that is random: first weights, order, noise, held-out images
    precision: str = "float32"  # compute type: "float32" or "bfloat16"; parameters stay float32
    parallel: str = "jit"  # or "pmap"
    steps_per_call: int = 0  # 0: chosen from the network's multiply-adds and the device kind
    monitor: str = ""  # best checkpoint, early stopping: "loss", or "" for the task's own metric
    early_stopping: int = 0  # epochs without improvement of `monitor`; 0 never stops early


_CHOICES = {
    "data.resize": ("crop", "stretch", "pad"),
    "data.on_bad_image": ("error", "skip"),
    "data.feeder": ("auto", "resident", "streaming"),
    "data.balance.sampler": ("natural", "balanced", "sqrt", "repeat_factor"),
    "loss.class_weights": ("none", "balanced", "effective"),
    "precision": ("float32", "bfloat16"),
    "parallel": ("jit", "pmap"),
}
_AT_LEAST = {
    "epochs": 1,
    "steps_per_call": 0,
    "early_stopping": 0,
    "data.batch_size": 1,
    "data.eval_batch_size": 1,
    "optimizer.accumulate": 1,
    "optimizer.lookahead.every": 0,
    "run.save_every_steps": 0,
    "run.keep_last": 1,
    "run.keep_best": 0,
    "run.workers": 0,
}


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain dicts and lists, ready for JSON; equal configs give equal dicts."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, ConfigDict):
            return plain(value.to_dict())
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises UserError for a field of another version of flaxcnn."""

    def build(cls: type, values: dict[str, Any]) -> Any:
        built = cls()
        for name, value in values.items():
            if not hasattr(built, name):
                raise UserError(f"the config was written by another flaxcnn: it has a field {name}")
            default = getattr(built, name)
            if dataclasses.is_dataclass(default):
                value = build(type(default), value)
            elif isinstance(default, ConfigDict):
                value = ConfigDict(value)
            elif isinstance(default, tuple):
                value = tuple(value)
            setattr(built, name, value)
        return built

    return build(Config, values)


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of `config` as (dotted name, value), in order of declaration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def check_field(path: str) -> None:
    """Raises UserError if `path` ("optimizer.learning_rate") names no field of `Config`."""
    known = dict(fields(Config()))
    if path in known:
        return
    for name, value in known.items():
        key = path.removeprefix(f"{name}.")
        if isinstance(value, ConfigDict) and key != path:
            if all(part.isidentifier() for part in key.split(".")):
                return
            raise UserError(f"{path}: write --config.{name}='{{\"{key}\": ...}}' instead")
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else f"; the fields are {', '.join(known)}"
    raise UserError(f"the config has no field {path}{hint}")


def validate(config: Config) -> None:
    """Raises UserError, naming the field, for what can be known to be wrong before any work."""
    if not isinstance(config, Config):
        raise UserError(f"get_config() must return a flaxcnn Config, got {type(config).__name__}")
    config.data.augment = freeze_policy(config.data.augment)
    config.data.views = freeze_policy(config.data.views)
    _check_types(config, Config(), "")
    _check_augment(config.data)
    values = dict(fields(config))
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, got {values[name]!r}")
    for name, least in _AT_LEAST.items():
        if values[name] < least:
            raise UserError(f"{name} must be at least {least}, got {values[name]}")
    if config.data.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"optimizer.accumulate must divide data.batch_size: {config.optimizer.accumulate} "
            f"does not divide {config.data.batch_size}"
        )
    own = find_task(config.task.name).monitor.name
    if config.monitor not in ("", own, "loss"):
        raise UserError(f"monitor must be {own} or loss, got {config.monitor!r}")
    if not 0 <= config.optimizer.ema_decay < 1:
        raise UserError(f"optimizer.ema_decay must be in [0, 1), got {config.optimizer.ema_decay}")
    _check_imbalance(config.data.balance, config.loss)
    try:
        json.dumps(to_dict(config))
    except TypeError as error:
        raise UserError(f"the config must hold plain values only: {error}") from error


def _check_augment(data: DataConfig) -> None:
    data.augment_classes = tuple(map(str, data.augment_classes))  # 0, 1, ... may be numbers
    if data.augment_classes and not data.augment:
        raise UserError("data.augment_classes says for which classes data.augment is: give that")
    read_policy(data.augment, by_class=bool(data.augment_classes))
    read_views(data.views)


def _check_imbalance(balance: BalanceConfig, loss: LossConfig) -> None:
    # Again after the flags: JSON, and so the run's config.json, has no other keys.
    balance.subsample, balance.expand = map(_keyed_by_name, (balance.subsample, balance.expand))
    field = "data.balance"
    for name, share in balance.subsample.to_dict().items():
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise UserError(f"{field}.subsample.{name} must be a share in (0, 1], got {share!r}")
    for name, copies in balance.expand.to_dict().items():
        if type(copies) is not int or copies < 1:
            raise UserError(
                f"{field}.expand.{name} must be a number of extra copies, got {copies!r}"
            )
    if balance.expand and balance.sampler != "natural":
        raise UserError(
            f"{field}.expand and {field}.sampler={balance.sampler!r} both say how often an image "
            "is shown: leave one of them out"
        )
    if not 0 < balance.repeat_threshold <= 1:
        threshold = balance.repeat_threshold
        raise UserError(f"{field}.repeat_threshold must be in (0, 1], got {threshold}")
    if not 0 <= loss.effective_beta < 1:
        raise UserError(f"loss.effective_beta must be in [0, 1), got {loss.effective_beta}")


def _check_types(config: Any, default: Any, prefix: str) -> None:
    """Each leaf has its default's type (an int will do for a float), and no field is invented."""
    unknown = set(vars(config)) - {field.name for field in dataclasses.fields(default)}
    if unknown:
        check_field(prefix + sorted(unknown)[0])
    for field in dataclasses.fields(default):
        name, value = prefix + field.name, getattr(config, field.name)
        expected = getattr(default, field.name)
        if isinstance(expected, float) and type(value) is int:
            value = float(value)
            setattr(config, field.name, value)
        if type(value) is not type(expected):
            raise UserError(
                f"{name} must be {type(expected).__name__}, got {type(value).__name__} {value!r}"
            )
        if dataclasses.is_dataclass(value):
            _check_types(value, expected, f"{name}.")
        elif name in ("data.augment", "data.views"):
            continue  # `read_policy` and `read_views` know them better
        elif isinstance(value, tuple):
            names = name == "data.augment_classes"
            if not all(isinstance(v, int | str if names else int | float) for v in value):
                kind = "names" if names else "numbers"
                raise UserError(f"{name} must hold {kind} only, got {value!r}")


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "field: before -> after" for each leaf in which two `to_dict` results differ."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
