"""What a config writes down: entries, each a name and its settings, and what settings may be."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flaxcnn.data.geometry import Fill
from flaxcnn.errors import UserError


def freeze_policy(policy: Any) -> Any:
    """Lists (as a config or JSON has them) as tuples, at any depth; anything else as it is."""
    if isinstance(policy, list | tuple):
        return tuple(freeze_policy(entry) for entry in policy)
    if isinstance(policy, dict):
        return {name: freeze_policy(value) for name, value in policy.items()}
    return policy


def split_entry(entry: Any, makers: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """The name, settings in order and settings by name of an entry; its name is one of `makers`.

    Raises UserError for anything else.
    """
    if not isinstance(entry, tuple) or not entry or not isinstance(entry[0], str):
        raise UserError('an entry is a name and its settings, as ("flip",)')
    name, *settings = entry
    if name not in makers:
        raise UserError(f"there is no {name}; there are {', '.join(sorted(makers))}")
    named = settings.pop() if settings and isinstance(settings[-1], dict) else {}
    return name, settings, dict(named)


def call_maker(
    name: str, make: Callable[..., Any], settings: list[Any], named: dict[str, Any]
) -> Any:
    """`make` of the settings. Raises UserError with their names if they are not the maker's."""
    known = inspect.signature(make).parameters
    try:
        return make(*settings, **named)
    except TypeError:
        names = ", ".join(str(p).replace(": ", " ").partition(" ")[0] for p in known.values())
        raise UserError(f"the settings of {name} are: {names or 'none'}") from None


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Raises UserError unless `value` is a number in low..high."""
    kind = "a whole number" if whole else "a number"
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"{name} must be {kind} in {low}..{high}, got {value!r}")


def check_range(name: str, value: object, low: float, high: float) -> None:
    """Raises UserError unless `value` is a pair of numbers in low..high, the smaller one first."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise UserError(f"{name} must be a pair (low, high), got {value!r}")
    check_number(f"{name}[0]", value[0], low, high)
    check_number(f"{name}[1]", value[1], value[0], high)


def check_fill(fill: object) -> Fill:
    """Raises UserError unless `fill` says what lies beyond the borders."""
    if isinstance(fill, str) and fill in ("reflect", "edge"):
        return fill
    number = isinstance(fill, int | float) and not isinstance(fill, bool)
    if not number or not 0 <= fill <= 1:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"fill must be 'reflect', 'edge' or a number in 0..1, got {fill!r}")
    return float(fill)  # pyright: ignore[reportArgumentType]
