"""Imports point one way, and importing the package loads nothing heavy."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flaxcnn"

# What each part may import of the package, besides itself.
ALLOWED = {
    "errors": set(),
    "exit_status": set(),
    "memory": set(),
    "compat": set(),
    "layers": {"errors", "compat"},
    "boxes": set(),
    "models": {"errors", "compat", "layers", "boxes"},
    "weights": {"errors", "layers", "models", "data"},
    "analysis": {"errors", "compat", "layers", "models", "weights", "data"},
    "data": {"errors", "boxes"},
    "tasks": {"errors", "data", "models", "layers", "boxes"},
    "training": {
        "__version__",
        "errors",
        "exit_status",
        "memory",
        "tasks",
        "data",
        "models",
        "layers",
        "weights",
    },
    "study": {"errors", "training", "tasks"},
    "audit": {"errors", "training", "data", "models"},
    "estimate": {"errors", "analysis", "training", "data", "models", "layers", "compat"},
    "export": {"errors", "models", "layers", "weights"},
    "compression": {"errors", "models", "layers", "weights"},
    "commands": {
        "__version__",
        "errors",
        "exit_status",
        "analysis",
        "audit",
        "compression",
        "estimate",
        "export",
        "study",
        "training",
        "tasks",
        "weights",
        "data",
        "models",
    },
    "__init__": {"analysis", "models", "training", "weights"},
    "__main__": {"commands"},
}
# Each outside thing is known to one part only.
OWNERS = {
    "tensorflow_datasets": {"data/tfds_source.py"},
    "orbax": {"training/checkpoint.py"},
    "tensorboardX": {"training/logger.py"},
    "grain": {"data/feeders.py"},
    "etils": {"training/mirror.py"},
    "h5py": {"weights/formats/keras.py"},
    "huggingface_hub": {"weights/hub.py"},
    "wandb": {"training/sinks/wandb_tracker.py"},
    "mlflow": {"training/sinks/mlflow_tracker.py"},
    "trackio": {"training/sinks/trackio_tracker.py"},
    "onnxruntime": {"export/measure.py"},
}


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_import_points_backwards(file):
    part = part_of(file)
    for name in imported(file):
        if name.startswith("flaxcnn."):
            target = name.split(".")[1]
            assert target == part or target in ALLOWED[part], f"{part} imports {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_one_file_knows_each_outside_thing(library):
    users = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name.split(".")[0] == library for name in imported(file))
    }
    assert users == OWNERS[library]
