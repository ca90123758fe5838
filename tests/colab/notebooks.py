"""The notebooks of colab/, for their tests."""

import importlib.util
import re
import warnings
from pathlib import Path

with warnings.catch_warnings():  # jupyter_client 7, Colab's, has a date without a year
    warnings.simplefilter("ignore", DeprecationWarning)
    import jupytext

ROOT = Path(__file__).parents[2]
__all__ = ["ROOT", "SOURCES", "cells", "find_cell", "jupytext", "load_build"]
SOURCES = sorted((ROOT / "colab").glob("[0-9]_*.py"))


def load_build():
    """colab/build.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "colab" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(source: Path) -> list[str]:
    """The code cells of a .py."""
    parts = re.split(r"^# %%(.*)\n", source.read_text(), flags=re.MULTILINE)
    return [code for kind, code in zip(parts[1::2], parts[2::2], strict=True) if not kind.strip()]


def find_cell(source: Path, words: str) -> str:
    """The one code cell with these words in it."""
    (cell,) = [code for code in cells(source) if words in code]
    return cell
