"""The fields of a config by their dotted names."""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, fields, normalize
from flaxcnn.training.config_json import RENAMED


def check_field(path: str) -> None:
    """Raises UserError if `path` ("optimizer.learning_rate") names no field of `Config`."""
    known = dict(fields(Config()))
    if path in known:
        return
    if renamed := _describe_renamed(path, known):
        raise UserError(renamed)
    if within := [name for name in known if name.startswith(f"{path}.")]:
        raise UserError(f"{path} is a section of the config: set {', '.join(within)}")
    for name, value in known.items():
        key = path.removeprefix(f"{name}.")
        if isinstance(value, ConfigDict) and key != path:
            if all(part.isidentifier() for part in key.split(".")):
                return
            raise UserError(f"{path}: write --config.{name}='{{\"{key}\": ...}}' instead")
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else f"; the fields are {', '.join(known)}"
    raise UserError(f"the config has no field {path}{hint}")


def _describe_renamed(path: str, known: dict[str, Any]) -> str:
    """What a field, a section or a class's entry of an older version is called now, or ""."""
    for old, new in RENAMED.items():
        key = path.removeprefix(old)
        if path == old or (key.startswith(".") and isinstance(known[new], ConfigDict)):
            return f"{path} is now {new}{key}"
    if any(name.startswith(f"{path}.") for name in known):  # a section that is still there
        return ""
    moved = (f"{old} is now {new}" for old, new in RENAMED.items() if old.startswith(f"{path}."))
    return ", ".join(moved)


def change_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with other values in the dotted fields of `values`.

    Raises UserError for a field that there is not.
    """
    config = normalize(config)  # a copy
    for path, value in values.items():
        check_field(path)
        *parents, name = path.split(".")
        owner: Any = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return normalize(config)
