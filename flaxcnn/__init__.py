"""Classic convolutional networks as pure Flax modules, and one reproducible training engine."""

from flaxcnn import weights
from flaxcnn.models import create_model, feature_info, fold_batch_norm, init, list_models
from flaxcnn.training import train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "create_model",
    "feature_info",
    "fold_batch_norm",
    "init",
    "list_models",
    "train",
    "weights",
]
