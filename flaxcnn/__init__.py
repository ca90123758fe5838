"""Classic convolutional networks as pure Flax modules, and one reproducible training engine.

What is named here is imported when it is first asked for: networks do not need the engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxcnn import analysis, weights
    from flaxcnn.models import create_model, feature_info, fold_batch_norm, init, list_models
    from flaxcnn.training import train
    from flaxcnn.training.inference import load
    from flaxcnn.weights import from_pretrained

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "analysis",
    "create_model",
    "feature_info",
    "fold_batch_norm",
    "from_pretrained",
    "init",
    "list_models",
    "load",
    "train",
    "weights",
]
_PARTS = (
    *("analysis", "audit", "compression", "data", "errors", "export", "layers", "models"),
    *("tasks", "training", "weights"),
)

if not TYPE_CHECKING:  # to whom a module with it has every name

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return importlib.import_module(f"flaxcnn.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'flaxcnn' has no attribute {name!r}")
        part = {"train": "training", "load": "training.inference", "from_pretrained": "weights"}
        return getattr(importlib.import_module(f"flaxcnn.{part.get(name, 'models')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
