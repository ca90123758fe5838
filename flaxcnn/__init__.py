"""Classic convolutional networks as pure Flax modules, and one reproducible training engine."""

from flaxcnn.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models"]
