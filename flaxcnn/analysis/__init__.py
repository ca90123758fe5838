"""What a network is made of, what it takes, and what its values depend on."""

from flaxcnn.analysis.field_plot import draw_field, field_by_depth
from flaxcnn.analysis.multiply_adds import count_multiply_adds
from flaxcnn.analysis.receptive_field import (
    ReceptiveField,
    extent,
    influence,
    receptive_fields,
)
from flaxcnn.analysis.summary import Layer, Summary, summary
from flaxcnn.analysis.summary_text import format_markdown, format_text

__all__ = [
    "Layer",
    "ReceptiveField",
    "Summary",
    "count_multiply_adds",
    "draw_field",
    "extent",
    "field_by_depth",
    "format_markdown",
    "format_text",
    "influence",
    "receptive_fields",
    "summary",
]
