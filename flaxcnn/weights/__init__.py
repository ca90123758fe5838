"""Weights from other libraries, and for them: networks with published ones, and what reads them."""

import importlib
from typing import TYPE_CHECKING, Any

from flaxcnn.weights.convert import convert, export
from flaxcnn.weights.formats import read_tensors
from flaxcnn.weights.layouts import find_layout

if TYPE_CHECKING:
    from flaxcnn.weights.preprocessing import Preprocessing
    from flaxcnn.weights.pretrained import from_pretrained

__all__ = ["Preprocessing", "convert", "export", "find_layout", "from_pretrained", "read_tensors"]

if not TYPE_CHECKING:  # these decode images: imported when they are first asked for

    def __getattr__(name: str) -> Any:
        parts = {"Preprocessing": "preprocessing", "from_pretrained": "pretrained"}
        if name not in parts:
            raise AttributeError(f"module 'flaxcnn.weights' has no attribute {name!r}")
        return getattr(importlib.import_module(f"flaxcnn.weights.{parts[name]}"), name)
