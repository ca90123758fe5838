"""Sizes and paddings as users write them, read in one place for convolutions and pools."""

import operator
from collections.abc import Sequence
from typing import Any

from jax import lax

from flaxcnn.errors import UserError

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]
Pads = tuple[tuple[int, int], ...]


def per_axis(value: Sizes, rank: int, name: str) -> tuple[int, ...]:
    """One number for each of `rank` axes; one alone holds for all of them.

    Takes NumPy's integers too. Raises UserError, which names `name`, for anything else.
    """
    single = as_integer(value)
    sizes = (single,) * rank if single is not None else _as_integers(value)
    if sizes is None or len(sizes) != rank:
        wanted = f"an integer or {rank} of them, one per axis"
        raise UserError(f"{name} is {value!r}, and must be {wanted}")
    return sizes


def read_padding(
    padding: Padding,
    size: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    *,
    other_names: tuple[str, ...] = (),
) -> Pads:
    """What is added (before, after) on each axis: images of `size` under windows of `window`.

    `padding` is "SAME", "VALID" or "SAME_LOWER" (in any case) with the meaning of `lax`, a number
    for every side, or a sequence with one number (both sides) or one pair per axis; NumPy's
    integers too, and negative numbers crop. A dilated window counts as wide as it reaches. Raises
    UserError for anything else, naming `other_names` as well: those the caller reads itself.
    """
    rank = len(size)
    names = ("SAME", "VALID", "SAME_LOWER", *other_names)
    if isinstance(padding, str):
        if padding.upper() in names[:3]:
            pads = lax.padtype_to_pads(size, window, strides, padding.upper())
            # A symbolic size of jax.export is no integer.
            return tuple((_plain(low), _plain(high)) for low, high in pads)
    elif (border := as_integer(padding)) is not None:
        return ((border, border),) * rank
    elif not isinstance(padding, int) and hasattr(padding, "__iter__"):
        pairs = [_as_pair(value) for value in padding]
        found = tuple(pair for pair in pairs if pair is not None)
        if len(found) == len(pairs) == rank:
            return found
    raise UserError(
        f"padding is {padding!r}, and must be one of {', '.join(names)}, an integer, or a sequence "
        f"of {rank}: an integer or a (before, after) pair per axis"
    )


def as_integer(value: Any) -> int | None:
    """The value as Python's int, or None if it is not an integer, NumPy's included."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_integers(values: Any) -> tuple[int, ...] | None:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return None
    integers = [as_integer(value) for value in values]
    found = tuple(value for value in integers if value is not None)
    return found if len(found) == len(integers) else None


def _as_pair(value: Any) -> tuple[int, int] | None:
    single = as_integer(value)
    if single is not None:
        return single, single
    pair = _as_integers(value)
    return (pair[0], pair[1]) if pair is not None and len(pair) == 2 else None


def _plain(value: Any) -> Any:
    integer = as_integer(value)
    return value if integer is None else integer
