"""RoIAlign: products of matrices, since gathers at computed places scatter their gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.dtypes import mean_dtype

Array = jax.Array

_AT_ONCE = 64  # boxes whose rows are held in memory: [64, height, W, C]


def roi_align(
    x: Array,
    boxes: Array,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    valid: Array | None = None,
) -> Array:
    """Means of bilinear samples in a grid of bins in each box (He et al. 2017, Mask R-CNN).

    Features [N, H, W, C] and boxes [N, R, 4] of each image, (x1, y1, x2, y2) in pixels, give [N, R,
    *output_size, C], the values of `torchvision.ops.roi_align`: `spatial_scale` takes pixels to
    features, a bin has `sampling_ratio` samples in each direction, and with `aligned` a feature's
    centre is at 0.5 instead of 0, and boxes are not made at least one feature wide. What lies
    beyond the map by more than a feature is 0. Where `valid`, bool [N, R], is false, a box gives
    zeros.

    A bilinear sample is a row's weights times a column's, and so is the mean of a grid of them: two
    products with weights [R, height, H] and [R, width, W], as is the gradient. Boxes get none.
    Raises UserError unless there are samples.
    """
    if sampling_ratio < 1:
        raise UserError(f"roi_align: sampling_ratio is {sampling_ratio}, and must be at least 1")
    dtype = mean_dtype(x)
    boxes = lax.stop_gradient(boxes).astype(jnp.float32) * spatial_scale - 0.5 * aligned
    height, width = output_size

    def weigh(first: Array, last: Array, bins: int, side: int) -> Array:
        weights = _weigh(first, last, bins, side, sampling_ratio, aligned)
        return weights if valid is None else weights * valid[:, :, None, None]

    rows = weigh(boxes[..., 1], boxes[..., 3], height, x.shape[1]).astype(dtype)
    columns = weigh(boxes[..., 0], boxes[..., 2], width, x.shape[2]).astype(dtype)

    @jax.checkpoint  # else the strips of all boxes would be kept for the gradient
    def pool(x: Array, weights: tuple[Array, Array]) -> Array:
        rows, columns = weights
        strips = jnp.einsum("nrih,nhwc->nriwc", rows, x, precision=lax.Precision.HIGHEST)
        return jnp.einsum("nrjw,nriwc->nrijc", columns, strips, precision=lax.Precision.HIGHEST)

    x = x.astype(dtype)
    count = boxes.shape[1]
    parts = -(-count // _AT_ONCE)
    if parts <= 1:
        return pool(x, (rows, columns))

    def split(weights: Array) -> Array:  # [N, R, ...] -> [parts, N, R / parts, ...]
        rest = parts * _AT_ONCE - count
        weights = jnp.pad(weights, ((0, 0), (0, rest), (0, 0), (0, 0)))
        weights = weights.reshape(weights.shape[0], parts, _AT_ONCE, *weights.shape[2:])
        return jnp.moveaxis(weights, 1, 0)

    pooled = lax.map(lambda weights: pool(x, weights), (split(rows), split(columns)))
    pooled = jnp.moveaxis(pooled, 0, 1)
    return pooled.reshape(x.shape[0], parts * _AT_ONCE, *pooled.shape[3:])[:, :count]


def _weigh(first: Array, last: Array, bins: int, side: int, samples: int, aligned: bool) -> Array:
    """How much each place of an axis counts in each bin of first..last: [..., bins, side]."""
    length = last - first if aligned else jnp.maximum(last - first, 1.0)
    places = jnp.arange(side, dtype=jnp.float32).reshape((1,) * (first.ndim + 1) + (side,))
    # Term by term: of a mean over an axis of samples jaxlib 0.12.0.1 makes wrong numbers on CPU.
    total = jnp.zeros((*first.shape, bins, side), jnp.float32)
    for i in range(samples):
        steps = (jnp.arange(bins, dtype=jnp.float32) + (i + 0.5) / samples) / bins
        steps = steps.reshape((1,) * first.ndim + (bins,))
        at = first[..., None] + length[..., None] * steps
        inside = (at >= -1) & (at <= side)
        at = jnp.clip(at, 0, side - 1)[..., None]
        total += jnp.maximum(1 - jnp.abs(at - places), 0) * inside[..., None]
    return total / samples
