"""The C library's allocator, made to keep what a training step frees for the next one."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Lets glibc hold on to freed memory, for the life of the process; returns whether it does.

    For a training loop of your own on CPU, once, before its first step; `flaxcnn.train` and the
    commands that train do it. XLA:CPU allocates the buffers of every call anew. Without this, glibc
    gets large ones from the kernel and gives them back, and each step pays for zeroed pages
    (docs/adr/0006). What the process has needed at its peak it keeps. Nothing is done where the C
    library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all([mallopt(option, value) for option, value in options.items()])
