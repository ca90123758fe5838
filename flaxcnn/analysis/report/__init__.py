"""A run, or some side by side, as one HTML file."""

from flaxcnn.analysis.report.contents import Contents, Mistake, Named, Picture, to_json
from flaxcnn.analysis.report.page import render

__all__ = ["Contents", "Mistake", "Named", "Picture", "render", "to_json"]
