"""What a network is made of, what it takes, and what its values depend on."""

from flaxcnn.analysis.activations import activations, first_filters, layer_shapes
from flaxcnn.analysis.attribution import METHODS as ATTRIBUTION_METHODS
from flaxcnn.analysis.deconvnet import find_patches, reconstruct
from flaxcnn.analysis.diagram import draw_diagram, select_layers
from flaxcnn.analysis.field_plot import draw_field, field_by_depth
from flaxcnn.analysis.kernels import KERNELS, filter_image
from flaxcnn.analysis.maximization import maximize_activation
from flaxcnn.analysis.multiply_adds import count_multiply_adds
from flaxcnn.analysis.receptive_field import (
    ReceptiveField,
    extent,
    influence,
    receptive_fields,
)
from flaxcnn.analysis.signals import Signals, draw_signals, signals
from flaxcnn.analysis.summary import Layer, Summary, summary
from flaxcnn.analysis.summary_text import format_markdown, format_text

__all__ = [
    "ATTRIBUTION_METHODS",
    "KERNELS",
    "Layer",
    "ReceptiveField",
    "Signals",
    "Summary",
    "activations",
    "count_multiply_adds",
    "draw_diagram",
    "draw_field",
    "draw_signals",
    "extent",
    "field_by_depth",
    "filter_image",
    "find_patches",
    "first_filters",
    "format_markdown",
    "format_text",
    "influence",
    "layer_shapes",
    "maximize_activation",
    "receptive_fields",
    "reconstruct",
    "select_layers",
    "signals",
    "summary",
]
