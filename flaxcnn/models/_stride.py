"""Maps that stay large: dilation where a network would otherwise go on to shrink them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from flaxcnn.errors import UserError
from flaxcnn.layers.padding import Padding


class Dilated(NamedTuple):
    """What becomes of a stage: the stride that is left, and how far apart its taps are.

    `first` holds for the layer that had the stride, `rest` for all after it; `taken` is the stride
    that was taken from it, 1 where it is left.
    """

    stride: int
    first: int
    rest: int
    taken: int


def dilate(strides: Sequence[int], output_stride: int, network: object) -> list[Dilated]:
    """The stages' `strides` without those that would go beyond `output_stride`.

    What a stride leaves out is computed, too, and the layers after it skip what they would not have
    seen: the same values at the places that the undilated network has (the "hole algorithm", Chen
    et al. 2015, arXiv:1412.7062, section 3.1; as in torchvision and timm). Raises UserError unless
    `output_stride` is 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        name = type(network).__name__
        raise UserError(f"{name}: output_stride must be 8, 16 or 32, got {output_stride!r}")
    stages, total, dilation = [], 1, 1
    for stride in strides:
        before, taken = dilation, stride if total * stride > output_stride else 1
        dilation, stride = dilation * taken, stride // taken
        total *= stride
        stages.append(Dilated(stride, before, dilation, taken))
    return stages


def pad_same(x: jax.Array, taken: int, dilation: int) -> Padding:
    """The border of a 3x3 on maps [N, H, W, C] that had TensorFlow's "SAME" and a stride.

    With a stride "SAME" depends on the side, and without it would not: where the stride `taken` is
    gone, zeros stay where they were.
    """
    if taken == 1 and dilation == 1:
        return "SAME"
    sides = [-(-side // dilation) for side in x.shape[1:3]]  # of the undilated map
    lows = [max((-(-side // taken) - 1) * taken + 3 - side, 0) // 2 for side in sides]
    return tuple((low * dilation, (2 - low) * dilation) for low in lows)


def take_every(x: jax.Array, stride: int) -> jax.Array:
    """Every `stride`-th place of maps [N, H, W, C], from the first.

    As a slice: the gradient of indices is a scatter in jax 0.7.
    """
    return jax.lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))
