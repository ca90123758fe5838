"""AlexNet in its forms of 2012 and 2014, and the dense layers that ZFNet and VGG share with it.

Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks,
NIPS 2012, section 3; Krizhevsky: One weird trick for parallelizing convolutional neural networks,
2014 (arXiv:1404.5997). Trained by SGD with momentum 0.9 and weight decay 5e-4.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, Dropout, adaptive_avg_pool, local_response_norm, max_pool
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._images import check_images, flatten, flatten_windows
from flaxcnn.models._network import Network, check_window, run_block, run_stages
from flaxcnn.models._variant import make_variant

Array = jax.Array
ResponseNorm = Literal["none", "paper", "caffe"]

# Section 3.3: k=2, alpha=1e-4 times the sum of 5 squares, beta=0.75. Caffe has k=1 and alpha / 5.
RESPONSE_NORMS: dict[ResponseNorm, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "paper": local_response_norm,
    "caffe": functools.partial(local_response_norm, k=1.0, divide_alpha=True),
}

normal = nn.initializers.normal(0.01)
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class DenseHeadNetwork(Network, kw_only=True):
    """A network that ends in dense layers on its flattened last maps.

    Attributes:
      hidden: widths of the hidden dense layers.
      map_side: side of the maps that are flattened. Images of another size than the paper's give
        other maps, which are averaged to it as by PyTorch's AdaptiveAvgPool2d.
      dropout: the rate at each hidden layer.
    """

    hidden: tuple[int, ...] = (4096, 4096)
    map_side: int = 6
    dropout: float = 0.5


def classify_maps(
    network: DenseHeadNetwork,
    x: Array,
    *,
    train: bool,
    hidden: Any,
    classifier_init: Initializer = normal,
    dropout_first: bool = False,
) -> Array:
    """The dense layers: maps [N, H, W, C] -> float32 logits, or the last hidden layer's output.

    With `network.window` of each window of the maps, which is as large as `map_side`.
    `hidden` is nn.Dense with initialisers chosen. Dropout follows each hidden layer, or with
    `dropout_first` precedes it.
    """
    side = network.map_side
    if network.window not in (0, side):
        raise UserError(
            f"window is {network.window}, and the dense layers of {type(network).__name__} see "
            f"{side}x{side} places"
        )
    check_window(network, x)
    x = flatten_windows(x, side) if network.window else flatten(adaptive_avg_pool(x, (side, side)))
    for i, width in enumerate(network.hidden, 1):
        layer = hidden(width, dtype=network.dtype, name=f"fc{i}")
        drop = Dropout(network.dropout, network.axis_name, name=f"fc{i}_dropout")
        if dropout_first:
            x = nn.relu(layer(drop(x, train=train)))
        else:
            x = drop(nn.relu(layer(x)), train=train)
    if network.num_classes:
        x = nn.Dense(network.num_classes, kernel_init=classifier_init, name="classifier")(x)
    return x.astype(jnp.float32)


class AlexNet(DenseHeadNetwork):
    """AlexNet: [N, H, W, C] -> float32 logits [N, num_classes].

    Attributes:
      features: of the five convolutions.
      groups: of convolutions 2, 4 and 5: 2 for the two GPUs of the paper.
      border: zeros around the images. 0 takes 227x227 to 55x55, 2 takes 224x224 there.
      response_norm: local response normalisation after the first two ReLUs, with the constants of
        the paper or of Caffe (for the weights of BVLC), or none.
      dropout_first: dropout before each hidden layer, as in torchvision, and not after it.
      kernel_init: of every kernel.
      bias: at the start, of convolutions 2, 4, 5 and hidden layers; the others' is 0.
    """

    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    groups: int = 1
    border: int = 0
    response_norm: ResponseNorm = "paper"
    dropout_first: bool = False
    kernel_init: Initializer = normal
    bias: float = 1.0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Any:
        """Maps images [N, H, W, C] to float32 logits [N, num_classes], or to a tuple of maps."""
        check_images(images, 67 - 2 * self.border, self)
        biased = nn.initializers.constant(self.bias)
        norm = RESPONSE_NORMS[self.response_norm]
        pool = functools.partial(max_pool, window_shape=(3, 3), strides=(2, 2))

        def conv(x: Array, index: int, size: int, stride: int, padding: int) -> Array:
            paired = index in (2, 4, 5)
            layer = Conv(
                self.features[index - 1],
                size,
                stride,
                padding=padding,
                groups=self.groups if paired else 1,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                bias_init=biased if paired else nn.initializers.zeros_init(),
                name=f"conv{index}",
            )
            return nn.relu(layer(x))

        stages = {
            "stage1": lambda x: norm(conv(x, 1, 11, 4, self.border)),
            "stage2": lambda x: norm(conv(pool(x), 2, 5, 1, 2)),
            "stage3": lambda x: conv(pool(x), 3, 3, 1, 1),
            "stage4": lambda x: conv(x, 4, 3, 1, 1),
            "stage5": lambda x: conv(x, 5, 3, 1, 1),
            "pool5": pool,
        }
        blocks = {name: functools.partial(run_block, self, stages[name]) for name in stages}
        outputs = run_stages(self, images, blocks)
        if self.features_only:
            return outputs
        return classify_maps(
            self,
            outputs[-1],
            train=train,
            hidden=functools.partial(nn.Dense, kernel_init=self.kernel_init, bias_init=biased),
            classifier_init=self.kernel_init,
            dropout_first=self.dropout_first,
        )


_variant_2012 = functools.partial(
    make_variant,
    AlexNet,
    num_classes=1000,
    input_shape=(227, 227, 3),
    paper="Krizhevsky et al., ImageNet classification with deep convolutional neural networks",
    year=2012,
)

VARIANTS = {
    "alexnet_2012_2group": _variant_2012(60_965_224, 724_406_816, groups=2),
    "alexnet_ungrouped": _variant_2012(62_378_344, 1_135_256_096),
    "alexnet": make_variant(
        AlexNet,
        61_100_840,
        714_188_480,
        num_classes=1000,
        features=(64, 192, 384, 256, 256),
        border=2,
        response_norm="none",
        dropout_first=True,
        kernel_init=torch_uniform,
        bias=0.0,
        input_shape=(224, 224, 3),
        paper="Krizhevsky, One weird trick for parallelizing convolutional neural networks",
        year=2014,
    ),
}

ALIASES = {"alexnet_owt": "alexnet"}

DEVIATIONS = (
    Deviation(
        "alexnet",
        "2014: 384-384-256 in the last three convolutions, 61,838,248 parameters; initial weights "
        "not stated.",
        "torchvision: 384-256-256, no response normalisation, dropout before the hidden layers, "
        "uniform initial weights and biases.",
        "torchvision's, so that its weights fit; biases start at 0.",
    ),
    Deviation(
        "alexnet_2012_2group, alexnet_ungrouped",
        "Images of 224x224, which give no 55x55 maps with an 11x11 kernel and stride 4.",
        "Caffe takes 227x227 without a border; torchvision 224x224 with one of 2.",
        "227x227 as in Caffe; `border=2` for 224x224. Of other sizes the last maps are averaged to "
        "6x6 as in torchvision.",
    ),
    Deviation(
        "alexnet_2012_2group, alexnet_ungrouped",
        "Response normalisation with k=2 and alpha=1e-4; biases start at 1.",
        "Caffe: k=1, alpha=1e-4 / 5; biases start at 0.1, dense kernels with deviation 0.005.",
        "The paper's; `response_norm='caffe'` for the weights of BVLC's bvlc_alexnet.",
    ),
    Deviation(
        "alexnet_2012_2group",
        "Convolutions 2, 4 and 5 see the maps of their own GPU: two groups.",
        "Most ports have no groups, 62,378,344 parameters.",
        "Both: `alexnet_ungrouped` is the second.",
    ),
)
