"""Python files that users write: configs, whose `get_config()` returns a `Config`, and studies."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, validate


def run_file(path: str | Path, function: str) -> tuple[Any, str]:
    """What `function()` of the Python file `path` returns, and the file's docstring.

    Raises UserError naming the file if there is none, if it or the function raises, or without the
    function.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    name = f"flaxcnn file {Path(path).resolve()}"  # no module that is imported is called so
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function, None)
        value = found() if callable(found) else None
    except Exception as error:  # whatever the file itself raises
        del sys.modules[name]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not callable(found):
        raise UserError(f"{path} has no function {function}()")
    return value, module.__doc__ or ""


def load_config(path: str | Path) -> Config:
    """What the config file's `get_config()` returns, validated.

    Raises UserError as `run_file` and `validate`.
    """
    config, _ = run_file(path, "get_config")
    validate(config)
    return config
