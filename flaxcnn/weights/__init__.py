"""Weights from other libraries, and for them: networks with published ones, and what reads them."""

from flaxcnn.weights.convert import convert, export
from flaxcnn.weights.formats import read_tensors
from flaxcnn.weights.layouts import find_layout
from flaxcnn.weights.preprocessing import Preprocessing
from flaxcnn.weights.pretrained import from_pretrained

__all__ = ["Preprocessing", "convert", "export", "find_layout", "from_pretrained", "read_tensors"]
