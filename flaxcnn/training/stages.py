"""`stages` of a config: runs in folders of their own, each from the weights of the one before.

A stage is a name and the fields in which it differs from the config, by their dotted names:

    stages=(
        ("head", {"optimizer.freeze": "(?!classifier).*", "epochs": 2}),
        ("block5", {"optimizer.freeze": "stage[1-4]", "optimizer.learning_rate": 1e-4}),
    )

The first starts as the config says, another from the best checkpoint of the one before, unless its
`model.weights` is something else; where it has another `model.name`, from the parameters of the
same name and shape (Simonyan 2014, section 3.1, trains VGG-13 and 16 so).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_fields import change_fields

_BEFORE = "run:previous"  # in `model.weights` of a stage; what follows are options


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of its own."""

    name: str
    config: Config
    previous: str = ""  # the stage whose run it starts from


def read_stages(config: Config) -> list[Stage]:
    """The stages of a config, each with the config of its run; it has no stages itself.

    Raises UserError, naming the stage, for one that is no pair of a name and known fields.
    """
    found: list[Stage] = []
    for entry in config.stages:
        if not (
            isinstance(entry, tuple)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and isinstance(entry[1], Mapping)
        ):
            raise UserError(
                'stages must be pairs of a name and fields, as ("head", {"epochs": 2}), got '
                f"{entry!r}"
            )
        name, values = entry
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"stages: {name!r} must be the name of a folder: letters, digits, _.-")
        if name in {stage.name for stage in found} or name in ("saved", "checkpoints"):
            raise UserError(f"stages: there cannot be a second {name!r}")
        try:
            found.append(_make(config, name, values, found))
        except UserError as error:
            raise UserError(f"stage {name!r}: {error}") from None
    return found


def _make(config: Config, name: str, values: Mapping[str, Any], before: list[Stage]) -> Stage:
    if "stages" in values:
        raise UserError("a stage has no stages")
    # A copy without what a stage does not take over.
    base = normalize(dataclasses.replace(config, stages=()))
    if config.run.mirror:  # a mirror is of one run
        base.run.mirror = f"{config.run.mirror.rstrip('/')}/{name}"
    if before:
        base.model.weights = _BEFORE
    changed = change_fields(base, values)
    weights = changed.model.weights
    if weights.partition(",")[0] != _BEFORE:
        return Stage(name, changed)
    if not before:
        raise UserError(f"model.weights={weights!r}: there is no stage before the first")
    previous = before[-1]
    if changed.model.name != previous.config.model.name and "partial=" not in weights:
        weights += ",partial=true"
    changed.model.weights = weights.replace(_BEFORE, f"previous:{previous.name}", 1)
    return Stage(name, changed, previous.name)


def find_run(path: str | Path) -> Path:
    """The folder of the run in `path`: where a config with stages trains there, the last begun.

    Raises UserError if none of the stages has begun.
    """
    folder = Path(path).expanduser()
    if (folder / "run.json").exists():
        return folder
    try:
        stages = json.loads((folder / "config.json").read_text()).get("stages", ())
        begun = [folder / name for name, _ in stages if (folder / name / "run.json").exists()]
    except (OSError, ValueError, TypeError, AttributeError):  # it is no run's, or none at all
        return folder
    if stages and not begun:
        raise UserError(f"{path}: none of its stages has begun")
    return begun[-1] if begun else folder
