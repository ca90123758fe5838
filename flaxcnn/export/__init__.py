"""Trained networks in the formats of others: one HTML file that computes the network."""

from flaxcnn.export.html import Page as Page
from flaxcnn.export.html import Sample as Sample
from flaxcnn.export.html import export_html as export_html
