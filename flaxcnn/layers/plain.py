"""Layers in operations of `lax` alone, for converters, which know no others (docs/export.md).

Inside `in_plain_lax()` a traced network has none of our primitives: convolutions are
`lax.conv_general_dilated`, pools are `lax.reduce_window`, identities for the compiler are nothing.
Values are the same, to rounding; where it would run slowly it is not meant to run.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextlib.contextmanager
def in_plain_lax() -> Iterator[None]:
    """Whatever is traced inside is in `lax`'s operations; what was traced before stays as it is."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether we are inside `in_plain_lax()`."""
    return _plain.get()
