"""Where the commands keep compiled programs, so that the second start of anything is quick.

JAX's own bound (`jax_compilation_cache_max_size`) needs a package that is not always there, and
takes a lock for each program; so the folder is cut to size when a command starts.
"""

import os
from pathlib import Path

import jax

from flaxcnn.training.environment import count_threads, machine_type

LIMIT = 2 * 2**30  # bytes of all folders together


def enable_cache() -> None:
    """Lets this process keep compiled programs in the user's cache.

    Not those it starts, which may compute with another number of threads. Nothing is changed where
    JAX_COMPILATION_CACHE_DIR names another folder, where JAX_ENABLE_COMPILATION_CACHE=0 asks for
    none, or where the folder cannot be made.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    trim(folder.parent, LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def cache_folder() -> Path:
    """The folder for this kind of processor and number of threads.

    XLA compiles for both, and JAX's keys of programs have neither.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = machine_type().replace(" ", "_")
    return Path(base) / "flaxcnn" / "compiled" / f"{kind}_NPROC{count_threads()}"


def describe_cache() -> str:
    """Where this process keeps compiled programs, how large that is, and what turns it off."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not folder or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return "not kept"
    size = sum(size for _, size, _ in _list_files(Path(folder)))
    return f"{size / 1e6:.1f} MB in {folder} (JAX_ENABLE_COMPILATION_CACHE=0: not kept)"


def trim(folder: Path, limit: int) -> None:
    """Removes files, those used longest ago first, until at most `limit` bytes are left."""
    files = sorted(_list_files(folder), reverse=True)
    for _, size, file in files:
        limit -= size
        if limit < 0:
            file.unlink(missing_ok=True)


def _list_files(folder: Path) -> list[tuple[float, int, Path]]:
    """(last used, bytes, file); another process may remove some meanwhile."""
    found = []
    for file in folder.rglob("*-cache"):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    return found
