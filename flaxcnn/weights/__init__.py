"""Weights from other libraries, and for them: `convert`, `export`, and the files they come in."""

from flaxcnn.weights.convert import convert, export
from flaxcnn.weights.formats import read_tensors
from flaxcnn.weights.layouts import find_layout

__all__ = ["convert", "export", "find_layout", "read_tensors"]
