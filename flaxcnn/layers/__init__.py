"""The bricks every network is made of. BatchNorm is Flax's own."""

from flax.linen import BatchNorm

from flaxcnn.layers.activation import ACTIVATIONS, Activation, get_activation
from flaxcnn.layers.conv import Conv, conv
from flaxcnn.layers.noise import Dropout, GaussianDropout, GaussianNoise
from flaxcnn.layers.pool import avg_pool, global_avg_pool, global_max_pool, max_pool

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm",
    "Conv",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "avg_pool",
    "conv",
    "get_activation",
    "global_avg_pool",
    "global_max_pool",
    "max_pool",
]
