"""`model.weights` taken apart."""

import dataclasses
import re
from pathlib import Path

from flaxcnn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Spec:
    """`model.weights` without its options."""

    source: str
    checkpoint: str = "best"  # of a run
    partial: bool = False
    into: str = ""  # "backbone": weights of the network that this one stands on

    @property
    def run(self) -> str | None:
        """The folder of a run, if it is one."""
        return self.source.removeprefix("run:") if self.source.startswith("run:") else None


def parse_spec(weights: str) -> Spec:
    """Takes `partial`, `checkpoint` and `into` off the end of `model.weights`.

    Raises UserError for another value of them, or a run without a folder.
    """
    source, options = weights, {}
    while match := re.fullmatch(r"(.*),(partial|checkpoint|into)=([^,=]*)", source):
        source, options[match[2]] = match[1], match[3]
    for name, values in (("partial", ("true", "false")), ("checkpoint", ("best", "last"))):
        if options.get(name, values[0]) not in values:
            raise UserError(
                f"model.weights: {name} must be {' or '.join(values)}, got {options[name]!r}"
            )
    if source in ("", "run:", "file:"):
        raise UserError(f"model.weights={weights!r} names no weights")
    if "checkpoint" in options and not source.startswith(("run:", "previous:")):
        raise UserError(f"model.weights={weights!r}: checkpoint is of a run:WORKDIR")
    into = options.get("into", "")
    if into not in ("", "backbone"):
        raise UserError(f"model.weights: into must be backbone, got {into!r}")
    return Spec(
        source,
        options.get("checkpoint", "best"),
        options.get("partial") == "true" or bool(into),
        into,
    )


def absolute_weights(weights: str) -> str:
    """`model.weights` as it can be used from any folder."""
    kind, colon, path = weights.partition(":")
    if kind not in ("run", "file") or not path:
        return weights
    return f"{kind}{colon}{Path(path).expanduser().absolute()}"
