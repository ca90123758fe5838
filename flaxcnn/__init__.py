"""Classic convolutional networks as pure Flax modules, and one reproducible training engine.

What is named here is imported when it is first asked for: networks do not need the engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxcnn import weights
    from flaxcnn.models import create_model, feature_info, fold_batch_norm, init, list_models
    from flaxcnn.training import train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "create_model",
    "feature_info",
    "fold_batch_norm",
    "init",
    "list_models",
    "train",
    "weights",
]
_PARTS = ("audit", "data", "errors", "layers", "models", "tasks", "training", "weights")

if not TYPE_CHECKING:  # to whom a module with it has every name

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return importlib.import_module(f"flaxcnn.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'flaxcnn' has no attribute {name!r}")
        part = "training" if name == "train" else "models"
        return getattr(importlib.import_module(f"flaxcnn.{part}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
