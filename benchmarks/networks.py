"""The networks of the benchmark, written once for flaxcnn, plain Flax and PyTorch.

A definition is a function `(net, images) -> logits`, where `net` gives the layers of one library:
`conv`, `depthwise`, `batch_norm`, `max_pool`, `avg_pool`, `global_avg_pool`, `relu`, `relu6`,
`concat`, `flatten`, `dense` (`jax_side.JaxLayers`, `torch_side.TorchNetwork`). So every side does
the same work. Dropout is left out: it would time random number generators.

Padding is symmetric, and (kernel - 1) / 2 unless given, as in PyTorch. `relu(x, keep=True)` says
that `x` is used again, so that it must not be overwritten.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

Net, Maps = Any, Any  # of whichever library


class Network(NamedTuple):
    """A definition, the images and the batch it is measured with, and its trainable values."""

    define: Callable[[Net, Maps], Maps]
    input_shape: tuple[int, int, int]  # height, width, channels
    batch: int
    params: int
    num_classes: int = 1000
    flaxcnn_name: str | None = None  # of the same network in flaxcnn.models


def mnist_cnn_220k(net: Net, x: Maps) -> Maps:
    """As `flaxcnn.models` has it."""
    for features in (32, 64):
        x = net.relu(net.conv(x, features, 3, bias=True))
        x = net.max_pool(x, 2, 2)
    x = net.relu(net.dense(net.flatten(x), 64))
    return net.dense(x, 10)


def cifar_cnn_5x5_bn(net: Net, x: Maps) -> Maps:
    """As `flaxcnn.models` has it: BatchNorm after the activation."""
    for features, pooled in ((128, False), (64, True), (64, True)):
        x = net.batch_norm(net.relu(net.conv(x, features, 5, padding=0, bias=True)))
        x = net.max_pool(x, 2, 2) if pooled else x
    x = net.flatten(x)
    for width in (1024, 256):
        x = net.relu(net.dense(x, width))
    return net.dense(x, 10)


def alexnet(net: Net, x: Maps) -> Maps:
    """Krizhevsky 2014, one tower (arXiv:1404.5997)."""
    x = net.max_pool(net.relu(net.conv(x, 64, 11, 4, padding=2, bias=True)), 3, 2)
    x = net.max_pool(net.relu(net.conv(x, 192, 5, bias=True)), 3, 2)
    for features in (384, 256, 256):
        x = net.relu(net.conv(x, features, 3, bias=True))
    return _vgg_head(net, net.max_pool(x, 3, 2))


def vgg16(net: Net, x: Maps) -> Maps:
    """Simonyan and Zisserman 2014, configuration D (arXiv:1409.1556)."""
    for features, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            x = net.relu(net.conv(x, features, 3, bias=True))
        x = net.max_pool(x, 2, 2)
    return _vgg_head(net, x)


def _vgg_head(net: Net, x: Maps) -> Maps:
    x = net.flatten(x)
    for _ in range(2):
        x = net.relu(net.dense(x, 4096))
    return net.dense(x, 1000)


def squeezenet1_1(net: Net, x: Maps) -> Maps:
    """Iandola et al. 2016, release 1.1 (arXiv:1602.07360)."""
    x = net.relu(net.conv(x, 64, 3, 2, padding=0, bias=True))
    for stage in ((16, 16), (32, 32), (48, 48, 64, 64)):
        x = net.max_pool(x, 3, 2)
        for squeeze in stage:
            x = net.relu(net.conv(x, squeeze, 1, bias=True))
            expand1 = net.relu(net.conv(x, 4 * squeeze, 1, bias=True))
            expand3 = net.relu(net.conv(x, 4 * squeeze, 3, bias=True))
            x = net.concat([expand1, expand3])
    return net.global_avg_pool(net.relu(net.conv(x, 1000, 1, bias=True)))


def resnet(
    net: Net, x: Maps, *, repeats: tuple[int, ...], bottleneck: bool, groups: int, width: int
) -> Maps:
    """He et al. 2015, v1.5; Xie et al. 2016 with groups (arXiv:1512.03385, 1611.05431).

    `width` is that of the first stage's 3x3 convolutions.
    """
    x = net.max_pool(_conv_bn_relu(net, x, 64, 7, 2), 3, 2, padding=1)
    for stage, count in enumerate(repeats):
        inner = width * 2**stage
        features = (256 if bottleneck else 64) * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                y = _conv_bn_relu(net, x, inner, 1)
                y = _conv_bn_relu(net, y, inner, 3, stride, groups)
                y = net.batch_norm(net.conv(y, features, 1))
            else:
                y = _conv_bn_relu(net, x, inner, 3, stride)
                y = net.batch_norm(net.conv(y, features, 3))
            if block == 0 and (stage or bottleneck):
                x = net.batch_norm(net.conv(x, features, 1, stride))
            x = net.relu(y + x)
    return net.dense(net.global_avg_pool(x), 1000)


def _conv_bn_relu(
    net: Net, x: Maps, features: int, kernel: int, stride: int = 1, groups: int = 1
) -> Maps:
    return net.relu(net.batch_norm(net.conv(x, features, kernel, stride, groups=groups)))


def densenet121(net: Net, x: Maps) -> Maps:
    """Huang et al. 2016, growth 32 (arXiv:1608.06993)."""
    x = net.max_pool(_conv_bn_relu(net, x, 64, 7, 2), 3, 2, padding=1)
    channels = 64
    for stage, repeats in enumerate((6, 12, 24, 16)):
        if stage:
            channels //= 2
            x = net.conv(net.relu(net.batch_norm(x)), channels, 1)
            x = net.avg_pool(x, 2, 2)
        for _ in range(repeats):
            y = net.conv(net.relu(net.batch_norm(x)), 128, 1)
            y = net.conv(net.relu(net.batch_norm(y)), 32, 3)
            x = net.concat([x, y])
        channels += 32 * repeats
    return net.dense(net.global_avg_pool(net.relu(net.batch_norm(x))), 1000)


def mobilenet_v2(net: Net, x: Maps) -> Maps:
    """Sandler et al. 2018, Table 2 (arXiv:1801.04381)."""
    x, channels = net.relu6(net.batch_norm(net.conv(x, 32, 3, 2))), 32
    for expansion, features, repeats, first_stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(repeats):
            stride, y = 1 if block else first_stride, x
            if expansion > 1:
                y = net.relu6(net.batch_norm(net.conv(y, channels * expansion, 1)))
            y = net.relu6(net.batch_norm(net.depthwise(y, 3, stride)))
            y = net.batch_norm(net.conv(y, features, 1))
            x = x + y if block else y
            channels = features
    x = net.relu6(net.batch_norm(net.conv(x, 1280, 1)))
    return net.dense(net.global_avg_pool(x), 1000)


def xception(net: Net, x: Maps) -> Maps:
    """Chollet 2016, Figure 5 (arXiv:1610.02357)."""

    def separable(x: Maps, features: int) -> Maps:
        return net.batch_norm(net.conv(net.depthwise(x, 3), features, 1))

    def shrink(x: Maps, first: int, features: int, relu_first: bool = True) -> Maps:
        skip = net.batch_norm(net.conv(x, features, 1, 2))
        y = separable(net.relu(x, keep=True) if relu_first else x, first)
        y = separable(net.relu(y), features)
        return net.max_pool(y, 3, 2, padding=1) + skip

    for features, stride in ((32, 2), (64, 1)):
        x = net.relu(net.batch_norm(net.conv(x, features, 3, stride, padding=0)))
    x = shrink(x, 128, 128, relu_first=False)
    x = shrink(shrink(x, 256, 256), 728, 728)
    for _ in range(8):
        y = separable(net.relu(x, keep=True), 728)
        for _ in range(2):
            y = separable(net.relu(y), 728)
        x = x + y
    x = shrink(x, 728, 1024)
    for features in (1536, 2048):
        x = net.relu(separable(x, features))
    return net.dense(net.global_avg_pool(x), 1000)


_resnet18 = functools.partial(resnet, repeats=(2, 2, 2, 2), bottleneck=False, groups=1, width=64)
_resnet50 = functools.partial(resnet, repeats=(3, 4, 6, 3), bottleneck=True, groups=1, width=64)
_resnext50 = functools.partial(resnet, repeats=(3, 4, 6, 3), bottleneck=True, groups=32, width=128)

NETWORKS = {
    "mnist_cnn_220k": Network(
        mnist_cnn_220k, (28, 28, 1), 64, 220_234, 10, flaxcnn_name="mnist_cnn_220k"
    ),
    "cifar_cnn_5x5_bn": Network(
        cifar_cnn_5x5_bn, (32, 32, 3), 128, 1_632_138, 10, flaxcnn_name="cifar_cnn_5x5_bn"
    ),
    "alexnet": Network(alexnet, (224, 224, 3), 16, 61_100_840),
    "vgg16": Network(vgg16, (224, 224, 3), 4, 138_357_544),
    "squeezenet1_1": Network(squeezenet1_1, (224, 224, 3), 8, 1_235_496),
    "resnet18": Network(_resnet18, (224, 224, 3), 8, 11_689_512),
    "resnet50": Network(_resnet50, (224, 224, 3), 8, 25_557_032, flaxcnn_name="resnet50"),
    "resnext50_32x4d": Network(_resnext50, (224, 224, 3), 8, 25_028_904),
    "densenet121": Network(densenet121, (224, 224, 3), 8, 7_978_856, flaxcnn_name="densenet121"),
    "mobilenet_v2": Network(mobilenet_v2, (224, 224, 3), 8, 3_504_872),
    "xception": Network(xception, (299, 299, 3), 4, 22_855_952),
}
