"""What an experiment is: plain dataclasses that `ml_collections.config_flags` can override.

A config file's `get_config()` returns a `Config`. The classes are not frozen because the flag
library assigns to their fields; `validate` is called once, before anything is loaded or compiled.
The `kwargs` fields are `ConfigDict`s, so that `--config.model.kwargs.activation=tanh` can add one.
"""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.data.augment import freeze_policy
from flaxcnn.errors import UserError


@dataclasses.dataclass
class ModelConfig:
    """Which network. `kwargs` go to `flaxcnn.create_model` beside `num_classes` and `dtype`."""

    name: str = "lenet5_dense"  # one of `flaxcnn list`
    kwargs: ConfigDict = dataclasses.field(default_factory=ConfigDict)  # of the network
    weights: str = ""  # to start with: a tag, "hf://...", URL#sha256=, "file:PATH", "run:WORKDIR"

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

    source: str = "digits"  # or tfds:NAME, folder: masks: boxes: keypoints: coco: voc: yolo:PATH
    batch_size: int = 64  # examples per optimizer update, over all devices
    eval_batch_size: int = 256  # examples at a time, over all devices
    image_size: tuple[int, ...] = ()  # (height, width); () keeps the source's own size
    resize: str = "crop"  # "crop" (shorter side, centre), "stretch" or "pad"
    channels: int = 0  # 1 grey, 3 RGB, 0 as in the source
    split: tuple[float, ...] = (0.7, 0.15, 0.15)  # folders without train/validation/test
    validation: float = 0.1  # share of train held out when the source has no validation split
    on_bad_image: str = "error"  # or "skip": damaged images are skipped and counted
    feeder: str = "auto"  # "resident" (on the device), "streaming", or by resident_limit
    resident_limit: int = 2**31  # bytes of uint8 images up to which "auto" is "resident"
    normalization: object = "auto"  # "data", "sample" (2,000 images), "weights", or (mean, std)
    cache_features: bool = False  # of a frozen base: computed once, kept on disk; no augment, views
    augment: tuple[Any, ...] = ()  # of the training images: (("flip",), ("rotate", 15)), in order
    augment_classes: tuple[str, ...] = ()  # only of the images of these; () is all classes
    least_share: float = 0.0  # of a box's area: one of which augmentation leaves less is dropped
    views: tuple[Any, ...] = ()  # over which the final test averages: (("shift", 1), ("flip",))
    balance: BalanceConfig = dataclasses.field(default_factory=BalanceConfig)


@dataclasses.dataclass
class TaskConfig:
    """What is to be learnt; the settings of classification are the fields of `loss`."""

    name: str = "classification"  # "segmentation", "localization", "pose", "detection"
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
    layer_decay: float = 1.0  # factor of the rate from each layer to the one before it; 1: none
    mask_file: str = ""  # bool arrays by parameter (safetensors): where False, the weight stays 0
    share: bool = False  # weights of a kernel that are equal at the start stay equal
    freeze: str = ""  # regular expression: what it matches stays as it is: "stem|stage[1-3]"
    lookahead: LookaheadConfig = dataclasses.field(default_factory=LookaheadConfig)

    def __post_init__(self):
        self.kwargs, self.rates = ConfigDict(dict(self.kwargs)), ConfigDict(dict(self.rates))


@dataclasses.dataclass
class RunConfig:
    """How a run is looked after. Nothing here changes its result, so resuming may change it."""

    save_every_steps: int = 0  # 0: at the end of each epoch; else also every so many steps
    keep_last: int = 2  # newest checkpoints that are kept
    keep_best: int = 1  # and the best by `monitor`
    keep_every: int = 0  # and the first after each so many steps; 0: after each fifth of the run
    workers: int = 2  # processes that load images for the streaming feeder; 0: none
    mirror: str = ""  # folder, gs://... or hf://... to which each checkpoint is copied; "": none
    budget: str = ""  # "90s", "80m" or "11h", within which the run saves and ends; "": no end
    sinks: tuple[str, ...] = ()  # trackers that metrics go to, too: "wandb:PROJECT", "mlflow:NAME"


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
    precision: str = "float32"  # of the computation; "bfloat16", "float16"; parameters stay float32
    parallel: str = "jit"  # or "pmap"
    steps_per_call: int = 0  # 0: chosen from the network's multiply-adds and the device kind
    monitor: str = ""  # best checkpoint, early stopping: "loss", or "" for the task's own metric
    early_stopping: int = 0  # epochs without improvement of `monitor`; 0 never stops early
    stages: tuple[Any, ...] = ()  # runs one after another: (("head", {"epochs": 2}), ...)


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of `config` as (dotted name, value), in order of declaration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


_BY_CLASS = ("data.balance.subsample", "data.balance.expand")


def normalize(config: Config) -> Config:
    """A copy in the one notation that `validate` and the engine know; it is equal to its own copy.

    Tuples instead of lists, a float instead of an int where the default is one, a `ConfigDict`
    instead of a dict, and classes by name, also those called 0, 1, ... Any other value stays as it
    is, for `validate` to refuse. Raises UserError for what is no `Config`.
    """
    if not isinstance(config, Config):
        raise UserError(f"get_config() must return a flaxcnn Config, got {type(config).__name__}")
    return _normalize(config, Config(), "")


def _normalize(section: Any, default: Any, prefix: str) -> Any:
    copied = copy.copy(section)
    for field in dataclasses.fields(default):
        name, value = prefix + field.name, getattr(section, field.name)
        expected = getattr(default, field.name)
        if dataclasses.is_dataclass(expected) and type(value) is type(expected):
            value = _normalize(value, expected, f"{name}.")
        elif isinstance(expected, float) and type(value) is int:
            value = float(value)
        elif isinstance(expected, tuple) or name == "data.normalization":
            value = freeze_policy(value)
            if name == "data.augment_classes" and isinstance(value, tuple):
                value = tuple(str(entry) if type(entry) is int else entry for entry in value)
        elif isinstance(expected, ConfigDict) and isinstance(value, dict | ConfigDict):
            plain = value.to_dict() if isinstance(value, ConfigDict) else value
            value = _keyed_by_name(plain) if name in _BY_CLASS else ConfigDict(plain)
        setattr(copied, field.name, value)
    return copied
