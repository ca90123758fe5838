"""The bricks every network is made of."""

from flaxcnn.layers.activation import ACTIVATIONS, Activation, get_activation
from flaxcnn.layers.conv import conv, conv_transpose
from flaxcnn.layers.conv_modules import (
    Conv,
    ConvTranspose,
    DepthwiseConv,
    SeparableConv,
)
from flaxcnn.layers.initializers import INITIALIZERS, get_initializer
from flaxcnn.layers.noise import Dropout, DropPath, GaussianDropout, GaussianNoise
from flaxcnn.layers.norm import BatchNorm, FrozenBatchNorm, local_response_norm
from flaxcnn.layers.pool import (
    adaptive_avg_pool,
    avg_pool,
    channel_max_pool,
    global_avg_pool,
    global_max_pool,
    l2_pool,
    max_pool,
)
from flaxcnn.layers.roi_align import roi_align
from flaxcnn.layers.roi_pool import roi_max_pool
from flaxcnn.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "INITIALIZERS",
    "SeparableConv",
    "SqueezeExcite",
    "DropPath",
    "Dropout",
    "FrozenBatchNorm",
    "GaussianDropout",
    "GaussianNoise",
    "adaptive_avg_pool",
    "avg_pool",
    "channel_max_pool",
    "conv",
    "conv_transpose",
    "get_activation",
    "get_initializer",
    "global_avg_pool",
    "global_max_pool",
    "l2_pool",
    "local_response_norm",
    "max_pool",
    "roi_align",
    "roi_max_pool",
]
