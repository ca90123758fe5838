"""The layers of a network in NumPy, float64 and NHWC: what networks without a port are held to."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray
Pair = int | tuple[int, int]
Border = int | tuple[tuple[int, int], tuple[int, int]]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def conv2d(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Border = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Correlates [N, H, W, C] with [h, w, C / groups, F]; zeros around the image.

    Group g of the outputs sees group g of the inputs.
    """
    height, width, depth, features = kernel.shape
    rows, cols = _pair(dilation)
    extent = (rows * (height - 1) + 1, cols * (width - 1) + 1)
    windows = _windows(np.pad(np.asarray(x, float), _border(padding)), extent, stride)
    windows = windows[..., ::rows, ::cols]  # [N, H', W', C, h, w]
    kernel = np.asarray(kernel, float)
    if depth == 1 and features == groups:  # the loop below, at once
        taps = np.ndindex(height, width)
        y = np.sum([windows[..., i, j] * kernel[i, j, 0] for i, j in taps], axis=0)
        return y if bias is None else y + np.asarray(bias, float)
    y = np.concatenate(
        [
            np.tensordot(seen, part, axes=((3, 4, 5), (2, 0, 1)))
            for seen, part in zip(
                np.split(windows, groups, axis=3), np.split(kernel, groups, axis=3), strict=True
            )
        ],
        axis=-1,
    )
    assert y.shape[-1] == features
    return y if bias is None else y + np.asarray(bias, float)


def max_pool(
    x: Array, size: Pair, stride: Pair, padding: Border = 0, ceil_mode: bool = False
) -> Array:
    """Maximum over windows; with `ceil_mode` over the last, cut ones too."""
    x = np.pad(np.asarray(x, float), _border(padding), constant_values=-np.inf)
    if ceil_mode:
        x = np.pad(x, _overhang(x, size, stride, padding), constant_values=-np.inf)
    return _windows(x, _pair(size), stride).max((4, 5))


def avg_pool(
    x: Array,
    size: Pair,
    stride: Pair,
    padding: Border = 0,
    ceil_mode: bool = False,
    count_padding: bool = True,
) -> Array:
    """Mean over windows. What `ceil_mode` lets stick out of the border never counts."""
    x = np.pad(np.asarray(x, float), _border(padding))
    counted = np.full(x[:1, :, :, :1].shape, float(count_padding))
    (top, bottom), (left, right) = _border(padding)[1:3]
    counted[:, top : counted.shape[1] - bottom, left : counted.shape[2] - right] = 1
    if ceil_mode:
        overhang = _overhang(x, size, stride, padding)
        x, counted = np.pad(x, overhang), np.pad(counted, overhang)
    total, count = (_windows(a, _pair(size), stride).sum((4, 5)) for a in (x, counted))
    return total / count


def adaptive_avg_pool(x: Array, size: Pair) -> Array:
    """PyTorch's AdaptiveAvgPool2d: bin i of n is from floor(i H / n) to ceil((i + 1) H / n)."""
    height, width = x.shape[1:3]
    rows, cols = _pair(size)
    return np.stack(
        [
            np.stack(
                [
                    x[:, i * height // rows : -(-(i + 1) * height // rows)][
                        :, :, j * width // cols : -(-(j + 1) * width // cols)
                    ].mean((1, 2))
                    for j in range(cols)
                ],
                axis=1,
            )
            for i in range(rows)
        ],
        axis=1,
    )


def global_avg_pool(x: Array) -> Array:
    return x.mean((1, 2))


def local_response_norm(x: Array, size: int, k: float, alpha: float, beta: float) -> Array:
    """x / (k + alpha * sum of squares of `size`, odd, channels) ** beta; alpha is not divided."""
    low = size // 2
    squares = np.pad(x**2, [(0, 0)] * (x.ndim - 1) + [(low, low)])
    return x / (k + alpha * sliding_window_view(squares, size, axis=-1).sum(-1)) ** beta


def batch_norm(x: Array, scale, bias, mean, var, epsilon: float) -> Array:
    scale, bias, mean, var = (np.asarray(v, float) for v in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    y = x @ np.asarray(kernel, float)
    return y if bias is None else y + np.asarray(bias, float)


def flatten(x: Array) -> Array:
    """[N, H, W, C] -> [N, H W C]."""
    return x.reshape(len(x), -1)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _border(padding: Border) -> tuple:
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return ((0, 0), *padding, (0, 0))


def _windows(x: Array, size: tuple[int, int], stride: Pair) -> Array:
    rows, cols = _pair(stride)
    return sliding_window_view(x, size, axis=(1, 2))[:, ::rows, ::cols]


def _overhang(x: Array, size: Pair, stride: Pair, padding: Border) -> tuple:
    """How far the last window reaches beyond the padded image x; none starts in its end border."""
    overhang = []
    ends = [high for _, high in _border(padding)[1:3]]
    axes = zip(x.shape[1:3], _pair(size), _pair(stride), ends, strict=True)
    for length, window, step, end in axes:
        last = -(-(length - window) // step) * step
        if last >= length - end:
            last -= step
        overhang.append((0, max(last + window - length, 0)))
    return ((0, 0), *overhang, (0, 0))
