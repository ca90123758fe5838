"""What networks for a class per pixel share: their arguments, upsampling, cropping."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Dtype

from flaxcnn.errors import UserError
from flaxcnn.layers import conv_transpose

Array = jax.Array


class DenseNetwork(nn.Module, kw_only=True):
    """The arguments of every network that says more than what an image shows: of pixels, of boxes.

    Attributes:
      num_classes: at least 1.
      dtype, axis_name, remat: as of `Network`.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        """Raises UserError without classes."""
        if self.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, got {self.num_classes}")
        super().__post_init__()


class Upsample(nn.Module):
    """A transposed convolution that starts as bilinear interpolation by `factor`.

    [N, H, W, C] -> [N, (H + 1) * factor, (W + 1) * factor, C]: what its kernel of 2 * factor
    reaches, to be cropped. The kernel is `learned` from there, `kernel` [2 * factor, 2 * factor, C,
    C], or stays and is no parameter.
    """

    factor: int
    learned: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """See above."""
        if not self.learned:
            # Along one axis after the other: the kernel of 64x64 takes a thousand times as long.
            rows, columns = (_interpolate(side, self.factor, x.dtype) for side in x.shape[1:3])
            exact = jax.lax.Precision.HIGHEST
            x = jnp.einsum("nhwc,yh->nywc", x, rows, precision=exact)
            return jnp.einsum("nywc,xw->nyxc", x, columns, precision=exact)
        weights = bilinear_kernel(self.factor)[:, :, None, None]
        strides, channels = (self.factor, self.factor), x.shape[-1]

        def start(key: Any) -> Array:
            return jnp.asarray(weights * np.eye(channels, dtype=np.float32)[None, None])

        kernel = self.param("kernel", start)
        return conv_transpose(x, kernel.astype(x.dtype), strides=strides, padding="VALID")


def _interpolate(side: int, factor: int, dtype: Any) -> Array:
    """What `Upsample` does along an axis, a matrix [(side + 1) * factor, side]."""
    matrix = np.zeros(((side + 1) * factor, side))
    for i in range(side):
        matrix[i * factor : (i + 2) * factor, i] = _bilinear_row(factor)
    return jnp.asarray(matrix, dtype)


def _bilinear_row(factor: int) -> np.ndarray:
    return 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor


def bilinear_kernel(factor: int) -> np.ndarray:
    """Weights float32 [2 * factor, 2 * factor] of a transposed convolution with stride `factor`.

    `factor` is even, or 1; as Caffe's "bilinear" filler.
    """
    row = _bilinear_row(factor)
    return np.outer(row, row).astype(np.float32)


def freeze_kwargs(kwargs: Mapping[str, Any]) -> FrozenDict[str, Any]:
    """Arguments of another network as a network can hold them: what it hashes."""

    def freeze(value: Any) -> Any:
        return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value

    return FrozenDict({name: freeze(value) for name, value in dict(kwargs).items()})


def upsample_nearest(x: Array, like: Array) -> Array:
    """Maps with twice the sides, each value four times, cut to the size of `like`."""
    count, height, width, channels = x.shape
    shape = (count, height, 2, width, 2, channels)
    x = jnp.broadcast_to(x[:, :, None, :, None], shape)
    return crop(x.reshape(count, 2 * height, 2 * width, channels), 0, like)


def crop(x: Array, offset: int, like: Array) -> Array:
    """The part of maps that begins `offset` from the top left and is as large as `like`."""
    height, width = like.shape[1:3]
    return x[:, offset : offset + height, offset : offset + width]
