"""Weights from other libraries, and for them: `convert` and `export`."""

from flaxcnn.weights.convert import convert, export

__all__ = ["convert", "export"]
