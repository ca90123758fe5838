"""Trained networks in the formats of others: one HTML file that computes the network."""

from flaxcnn.export.html import Page, Sample, export_html

__all__ = ["Page", "Sample", "export_html"]
