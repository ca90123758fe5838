"""Writes docs/api.md from the public names of flaxcnn and the first lines of their docstrings.

python docs/make_api.py
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("api.md")
ROOT = FILE.parents[1]
# A module, and which of its names are listed; none for its `__all__`.
MODULES = {
    "flaxcnn": (),
    "flaxcnn.layers": (),
    "flaxcnn.boxes": (),
    "flaxcnn.weights": (),
    "flaxcnn.analysis": (),
    "flaxcnn.data.augment": (),
    "flaxcnn.training": (),
    "flaxcnn.audit": (),
    "flaxcnn.export": (),
    "flaxcnn.tasks.detection.sliding_window": ("detect_by_window",),
    "flaxcnn.tasks.task": ("Task", "Metric", "Setting", "Examples"),
}
HEADER = """# Public functions and classes

Made by `python docs/make_api.py` from the docstrings, which say more: shapes, units, errors,
sources. `...` is a default that the source file shows. Networks are listed by
`flaxcnn list --verbose`, and what is particular to each by [deviations.md](deviations.md); fields
of configs are explained by `flaxcnn train --help`.
"""


def find_public() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Each module, and its functions and classes by name, each in the first module that has it."""
    seen = []
    for module_name, names in MODULES.items():
        module = importlib.import_module(module_name)
        listed = []
        for name in sorted(names or module.__all__, key=str.lower):
            value = getattr(module, name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value not in seen:
                listed.append((name, value))
        seen += [value for _, value in listed]
        yield module_name, listed


def format_signature(value: Any) -> str:
    """The parameters without their types, which print differently with each Python and jax."""
    if getattr(value, "_is_protocol", False):
        return ""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_Default.of(parameter))
        for name, parameter in inspect.signature(value).parameters.items()
        if not (inspect.isclass(value) and name in ("parent", "name") and hasattr(value, "apply"))
    ]
    return str(inspect.Signature(parameters))


class _Default(str):
    """A default as it is printed."""

    __repr__ = str.__str__

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> Any:
        value = parameter.default
        if value is parameter.empty:
            return value
        if hasattr(value, "dtype"):  # jnp.float32
            return cls(value.dtype.name)
        plain = value is None or isinstance(value, bool | int | float | str | tuple)
        return cls(repr(value) if plain else "...")


def first_line(value: Any) -> str:
    """Of its own docstring, not of a class above it."""
    return (value.__doc__ or "").strip().split("\n")[0]


def render() -> str:
    """The text of the file."""
    lines = [HEADER]
    for module_name, listed in find_public():
        lines.append(f"## {module_name}\n")
        for name, value in listed:
            source = Path(inspect.getsourcefile(value) or "").relative_to(ROOT)
            link = f"[`{name}{format_signature(value)}`](../{source.as_posix()})"
            lines.append(f"- {link}: {first_line(value)}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(render())
