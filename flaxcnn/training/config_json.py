"""A config as JSON, whose `version` says which names its fields have.

`from_dict` also reads the versions before: an old run can always be evaluated and predicted with,
and resumed in its own folder.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, normalize

VERSION = 2  # what has none is of version 1

# What a field was called in version 1, and what it is called now.
RENAMED = {
    "checkpoint.every_steps": "run.save_every_steps",
    "checkpoint.keep_last": "run.keep_last",
    "checkpoint.keep_best": "run.keep_best",
    "data.workers": "run.workers",
    "data.sampler": "data.balance.sampler",
    "data.repeat_threshold": "data.balance.repeat_threshold",
    "data.expand": "data.balance.expand",
    "data.subsample": "data.balance.subsample",
    "optimizer.schedule": "optimizer.schedule.name",
    "optimizer.warmup_epochs": "optimizer.schedule.warmup_epochs",
    "optimizer.initial_fraction": "optimizer.schedule.initial_fraction",
    "optimizer.final_fraction": "optimizer.schedule.final_fraction",
    "optimizer.boundaries": "optimizer.schedule.boundaries",
    "optimizer.decay_rate": "optimizer.schedule.decay_rate",
    "optimizer.decay_epochs": "optimizer.schedule.decay_epochs",
    "optimizer.power": "optimizer.schedule.power",
    "optimizer.patience": "optimizer.schedule.patience",
    "optimizer.clip_norm": "optimizer.clip.norm",
    "optimizer.clip_value": "optimizer.clip.value",
    "optimizer.clip_adaptive": "optimizer.clip.adaptive",
    "optimizer.lookahead_every": "optimizer.lookahead.every",
    "optimizer.lookahead_decay": "optimizer.lookahead.decay",
}


def to_dict(config: Config) -> dict[str, Any]:
    """`config` and VERSION as plain dicts and lists, for JSON; equal configs give equal dicts."""

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

    return {"version": VERSION, **plain(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`, also of an older version, normalized.

    Raises UserError for a newer version, or a field that this version does not know.
    """
    values = dict(values)
    version = values.pop("version", 1)
    if version not in (1, VERSION):
        raise UserError(
            f"config.json is of version {version}, and this flaxcnn reads versions up to {VERSION}"
        )
    return normalize(_build(Config, _migrate(values) if version == 1 else values, ""))


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"config.json is damaged: {prefix[:-1]} is {values!r}")
    built = cls()
    for name, value in values.items():
        if not hasattr(built, name):
            raise UserError(
                f"the config was written by another flaxcnn: it has a field {prefix}{name}"
            )
        default = getattr(built, name)
        if dataclasses.is_dataclass(default):
            value = _build(type(default), value, f"{prefix}{name}.")
        setattr(built, name, value)
    return built


def _migrate(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of version 1 under their new names."""
    values = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    moved = {}
    for old, new in RENAMED.items():
        section, name = old.split(".")
        fields = values.get(section)
        if isinstance(fields, dict) and name in fields:
            moved[new] = fields.pop(name)
    if values.get("monitor") == "accuracy":  # what "" is now, of the one task there was
        values["monitor"] = ""
    if values.get("checkpoint") == {}:
        del values["checkpoint"]
    for path, value in moved.items():
        *sections, name = path.split(".")
        owner = values
        for section in sections:
            owner = owner.setdefault(section, {})
        owner[name] = value
    return values


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
