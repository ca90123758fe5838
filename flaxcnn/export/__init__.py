"""Trained networks in the formats of others: HTML, StableHLO, ONNX, safetensors, Keras."""

from flaxcnn.export.html import Page, Sample, export_html
from flaxcnn.export.onnx import export_onnx
from flaxcnn.export.stablehlo import export_stablehlo
from flaxcnn.export.weights import export_keras, export_safetensors

__all__ = [
    "Page",
    "Sample",
    "export_html",
    "export_keras",
    "export_onnx",
    "export_safetensors",
    "export_stablehlo",
]
