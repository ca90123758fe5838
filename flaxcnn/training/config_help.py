"""The fields of a config as `--help` shows them: name, default, and the comment in config.py."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.training.config import Config, fields


def describe_fields(prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, comment) of each field whose name begins with `prefix`."""
    comments = _comments(Config())
    return [
        (name, format_value(value), comments[name])
        for name, value in fields(Config())
        if name.startswith(prefix)
    ]


def _comments(config: Any, prefix: str = "") -> dict[str, str]:
    """What stands behind `#` in the lines of a dataclass's fields, and of those within it."""
    comments = {}
    source = inspect.getsource(type(config))
    for name, text in re.findall(r"^    (\w+): [^#\n]*(?:#\s*(.*))?$", source, re.MULTILINE):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            comments |= _comments(value, f"{prefix}{name}.")
        else:
            comments[prefix + name] = text
    return comments


def format_value(value: Any) -> str:
    """A setting as a config file has it, floats to six digits."""
    if isinstance(value, ConfigDict):
        return str(value.to_dict())
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(format_value, value))}{',' if len(value) == 1 else ''})"
    return f"{value:.6g}" if len(repr(value)) > 8 and isinstance(value, float) else repr(value)


def format_rows(rows: list[tuple[str, ...]], width: int = 100) -> str:
    """Columns as wide as their longest cell; the last one is wrapped."""
    sizes = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last in rows:
        start = "".join(f"{cell:<{size}}  " for cell, size in zip(cells, sizes, strict=True))
        lines.append(
            textwrap.fill(
                last,
                max(width, len(start) + 30),
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_on_hyphens=False,
            ).rstrip()
            or start.rstrip()
        )
    return "\n".join(lines)
