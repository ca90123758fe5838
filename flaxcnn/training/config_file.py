"""Python files that users write: configs, whose `get_config()` returns a `Config`, and studies.

Those that come with flaxcnn are known by name, without a folder and `.py`.
"""

import ast
import dataclasses
import difflib
import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_fields import check_field

_PACKAGE = Path(__file__).parents[1]
# The wheel has them within the package, a clone (an editable install, too) beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def list_files(kind: str = "config") -> dict[str, Path]:
    """The configs (or with `kind` "study" the studies) that come with flaxcnn, by name."""
    folders = [folder / "studies" if kind == "study" else folder for folder in _FOLDERS]
    found = {file.stem: file for folder in folders[::-1] for file in folder.glob("*.py")}
    return dict(sorted(found.items()))


def find_file(name: str | Path, kind: str = "config") -> Path:
    """The file of a config (or a "study") that is given by its name or as a path ending in .py.

    Raises UserError with the closest names if there is none.
    """
    path, known = Path(name), list_files(kind)
    if str(name) in known:
        return known[str(name)]
    if path.is_file():
        return path
    other = {"config": "study", "study": "config"}[kind]
    command = {"config": "train", "study": "study"}
    if path.suffix == ".py":
        hint = ""
        if path.stem in known:
            hint = f"; flaxcnn's own is `flaxcnn {command[kind]} {path.stem}`"
        raise UserError(f"{name}: no such file{hint}")
    if path.stem in list_files(other):
        raise UserError(f"{name} is a {other}: `flaxcnn {command[other]} {path.stem}`")
    if Path(f"{name}.py").is_file():
        raise UserError(f"no {kind} is called {name}: did you mean the file {name}.py?")
    close = difflib.get_close_matches(path.stem, known, cutoff=0.4)
    names = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known)}"
    raise UserError(f"no {kind} is called {name}: {names}")


def read_docstring(path: Path) -> str:
    """The docstring of a Python file, which is not run."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


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
        _check_fields(path, error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not callable(found):
        raise UserError(f"{path} has no function {function}()")
    return value, module.__doc__ or ""


def _check_fields(path: str | Path, error: Exception) -> None:
    """Raises UserError if `error` is of a field that its class in config.py has not, or no more."""
    sections = {"Config": ""} | _find_sections(Config(), "")
    message = str(error)
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    found = found or re.match(r"'(\w+)' object has no attribute '(\w+)'", message)
    if "cannot import name 'CheckpointConfig'" in message:
        name = "checkpoint"
    elif found and found[1] in sections:
        name = sections[found[1]] + found[2]
    else:
        return
    try:
        check_field(name)
    except UserError as wrong:
        raise UserError(f"{path}: {wrong}") from error


def _find_sections(config: Any, prefix: str) -> dict[str, str]:
    """The prefix of the fields of each class within `config`, by the class's name."""
    found = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            inner = f"{prefix}{name}."
            found |= {type(value).__name__: inner} | _find_sections(value, inner)
    return found


def load_config(name: str | Path) -> Config:
    """The config of that name, or what the `get_config()` of that file returns, validated.

    Raises UserError as `find_file`, `run_file` and `validate`.
    """
    config = normalize(run_file(find_file(name), "get_config")[0])
    validate(config)
    return config
