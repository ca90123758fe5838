"""What a report says of one run: plain data, which the template and JSON are made of."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file of `width` x `height` pixels, `mime` as "image/png"."""

    data: bytes
    mime: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The file inside an address."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclasses.dataclass(frozen=True)
class Named:
    """A picture with what stands above and below it."""

    name: str
    picture: Picture
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong prediction: its number in the split, its file or number, what it was taken for.

    `probability` is that of `predicted`; `pictures` are the image and its attributions.
    """

    index: int
    name: str
    true: str
    predicted: str
    loss: float
    probability: float | None
    pictures: Mapping[str, Picture]


@dataclasses.dataclass(frozen=True)
class Contents:
    """One run. What its task does not have is empty: a report has no section for it."""

    name: str  # what tells it from others of the report
    path: str
    metric: str  # by which runs of its task are compared
    unit: str  # "%": a share, written as percent
    split: str  # that the final figures are of
    figures: Mapping[str, float]
    table: str  # the task's own, for a terminal
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl, those of training and validation
    class_names: Sequence[str] = ()
    classes: Sequence[Mapping[str, Any]] = ()  # a row for each class, with a `name`
    # `split`, `epoch` and `counts` [C, C], a row for each true class; the last is `split`'s
    confusions: Sequence[Mapping[str, Any]] = ()
    mistakes: Sequence[Mistake] = ()  # the worst first
    wrong: int = 0  # of `images`
    images: int = 0
    pictures: Sequence[Named] = ()  # that the task draws
    filters: Sequence[Named] = ()  # of the first convolution
    features: Sequence[Named] = ()  # maps of some layers
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what the run is
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by dotted name
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()  # what is missing, and why


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(fields: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields that are not the same in all, with each one's value, None where it lacks it."""
    names = dict.fromkeys(name for of_run in fields for name in of_run)
    values = {name: [of_run.get(name) for of_run in fields] for name in names}
    return {name: found for name, found in values.items() if any(x != found[0] for x in found)}


def to_json(runs: Sequence[Contents]) -> dict[str, Any]:
    """The report's data, JSON-ready: all but the pictures."""
    fields = [{"config": run.config, "environment": run.environment} for run in runs]
    return {
        "runs": [_plain(run) for run in runs],
        "differences": differences([flatten(of_run) for of_run in fields]),
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {k: _plain(v) for k, v in fields.items() if not isinstance(v, Picture)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if not isinstance(v, Picture)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None  # JSON has no NaN
    return value
