"""Trained networks in the formats of others: HTML, StableHLO, ONNX, safetensors."""

from flaxcnn.export.html import Page, Sample, export_html
from flaxcnn.export.onnx import export_onnx
from flaxcnn.export.safetensors import export_safetensors
from flaxcnn.export.stablehlo import export_stablehlo

__all__ = [
    "Page",
    "Sample",
    "export_html",
    "export_onnx",
    "export_safetensors",
    "export_stablehlo",
]
