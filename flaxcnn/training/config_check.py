"""What is wrong with a config that can be known before any work, said in one line."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from flaxcnn.data.augment import read_policy, read_views
from flaxcnn.data.choices import FEEDERS, NORMALIZATION, ON_BAD_IMAGE, RESIZE, SAMPLERS
from flaxcnn.errors import UserError
from flaxcnn.tasks.registry import find_task
from flaxcnn.training.budget import parse_budget
from flaxcnn.training.config import BalanceConfig, Config, DataConfig, LossConfig, fields
from flaxcnn.training.config_fields import check_field
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.freeze import compile_pattern
from flaxcnn.training.stages import read_stages
from flaxcnn.training.weights_spec import parse_spec

_CHOICES = {
    "data.resize": RESIZE,
    "data.on_bad_image": ON_BAD_IMAGE,
    "data.feeder": FEEDERS,
    "data.balance.sampler": SAMPLERS,
    "loss.class_weights": ("none", "balanced", "effective"),
    "precision": ("float32", "bfloat16", "float16"),
    "parallel": ("jit", "pmap"),
}
_SINKS = ("wandb", "mlflow", "trackio")  # files of training/sinks
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
    "run.keep_every": 0,
    "run.workers": 0,
}


def validate(config: Config) -> None:
    """Raises UserError, naming the field, for what can be known to be wrong before any work.

    `config` comes from `normalize`; nothing in it is changed.
    """
    _check_types(config, Config(), "")
    places = find_task(config.task.name).places
    _check_augment(config.data, places)
    _check_normalization(config.data.normalization)
    _check_features(config)
    _check_weights(config)
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
    parse_budget(config.run.budget)
    _check_sinks(config.run.sinks)
    compile_pattern(config.optimizer.freeze)
    if not 0 <= config.optimizer.ema_decay < 1:
        raise UserError(f"optimizer.ema_decay must be in [0, 1), got {config.optimizer.ema_decay}")
    _check_imbalance(config.data.balance, config.loss)
    for stage in read_stages(config):
        try:
            validate(stage.config)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from None
    try:
        json.dumps(to_dict(config))
    except TypeError as error:
        raise UserError(f"the config must hold plain values only: {error}") from error


def _check_augment(data: DataConfig, places: bool) -> None:
    for field, given in (
        ("data.balance", data.balance != BalanceConfig()),
        ("data.augment_classes", bool(data.augment_classes)),
    ):
        if places and given:
            raise UserError(f"{field} goes by an image's label, which this task.name has none of")
    if data.augment_classes and not data.augment:
        raise UserError("data.augment_classes says for which classes data.augment is: give that")
    if not 0 <= data.least_share <= 1:
        raise UserError(f"data.least_share must be in [0, 1], got {data.least_share}")
    read_policy(data.augment, by_class=bool(data.augment_classes), places=places)
    read_views(data.views, places=places)


def _check_normalization(value: Any) -> None:
    if value in NORMALIZATION:
        return
    mean, std = value if isinstance(value, tuple) and len(value) == 2 else ((), ())
    pairs = isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) == len(std) > 0
    if not pairs or not all(type(v) in (int, float) for v in mean + std) or min(std) <= 0:
        raise UserError(
            f"data.normalization must be {', '.join(NORMALIZATION)} or (mean, std) with a number "
            f"for each channel, as ((0.5,), (0.25,)), got {value!r}"
        )


def _check_features(config: Config) -> None:
    if not config.data.cache_features:
        return
    if not config.optimizer.freeze:
        raise UserError("data.cache_features needs optimizer.freeze: they are of what is frozen")
    for field in ("augment", "views"):
        if getattr(config.data, field):
            raise UserError(
                f"data.{field} changes images, and data.cache_features looks at each once: give "
                "one of them"
            )
    if config.task.name != "classification":
        raise UserError(f"data.cache_features is for classification, not {config.task.name}")


def _check_weights(config: Config) -> None:
    weights = config.model.weights
    if not weights:
        if config.data.normalization == "weights":
            raise UserError("data.normalization=weights needs model.weights, whose it is")
    elif parse_spec(weights).source == "run:previous":
        raise UserError(f"model.weights={weights!r} is of a stage; see stages")


def _check_imbalance(balance: BalanceConfig, loss: LossConfig) -> None:
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
            "is shown: give one of them"
        )
    if not 0 < balance.repeat_threshold <= 1:
        threshold = balance.repeat_threshold
        raise UserError(f"{field}.repeat_threshold must be in (0, 1], got {threshold}")
    if not 0 <= loss.effective_beta < 1:
        raise UserError(f"loss.effective_beta must be in [0, 1), got {loss.effective_beta}")


def _check_sinks(names: Sequence[str]) -> None:
    for name in names:
        kind, _, place = name.partition(":")
        if kind not in _SINKS or not place:
            known = ", ".join(f"{kind}:NAME" for kind in _SINKS)
            raise UserError(f"run.sinks must hold any of {known}, got {name!r}")
    if len(set(names)) < len(names):
        raise UserError(f"run.sinks names a tracker twice: {', '.join(names)}")


def _check_types(config: Any, default: Any, prefix: str) -> None:
    """Each leaf has its default's type, and no field is invented."""
    unknown = set(vars(config)) - {field.name for field in dataclasses.fields(default)}
    if unknown:
        check_field(prefix + sorted(unknown)[0])
    for field in dataclasses.fields(default):
        name, value = prefix + field.name, getattr(config, field.name)
        expected = getattr(default, field.name)
        if name == "data.normalization":
            continue  # `_check_normalization` knows it better
        if type(value) is not type(expected):
            if dataclasses.is_dataclass(expected):
                check_field(name)  # says which of its fields could be meant
            raise UserError(
                f"{name} must be {type(expected).__name__}, got {type(value).__name__} {value!r}"
            )
        if dataclasses.is_dataclass(value):
            _check_types(value, expected, f"{name}.")
        elif name in ("data.augment", "data.views", "stages"):
            continue  # `read_policy`, `read_views` and `read_stages` know them better
        elif isinstance(value, tuple):
            names = name in ("data.augment_classes", "run.sinks")
            if not all(isinstance(v, str if names else int | float) for v in value):
                kind = "names" if names else "numbers"
                raise UserError(f"{name} must hold {kind} only, got {value!r}")
