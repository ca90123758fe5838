"""The networks, one file per paper, and their registry."""

from flaxcnn.models.lenet import LeNet, LeNet5
from flaxcnn.models.mlp import MLP
from flaxcnn.models.registry import create_model, list_models, variant
from flaxcnn.models.small_cnn import SmallCNN
from flaxcnn.models.variant import Variant

__all__ = [
    "MLP",
    "LeNet",
    "LeNet5",
    "SmallCNN",
    "Variant",
    "create_model",
    "list_models",
    "variant",
]
