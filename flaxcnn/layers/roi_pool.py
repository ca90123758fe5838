"""Pooling of regions of interest: masks, since slices at computed places scatter their gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.layers.pool import refuse_complex, refuse_empty_maps
from flaxcnn.layers.pool_windows import least_value

Array = jax.Array


def roi_max_pool(
    x: Array, boxes: Array, output_size: tuple[int, int], spatial_scale: float = 1.0
) -> Array:
    """Maximum over a grid of bins in each region of interest (Fast R-CNN, Girshick 2015).

    Pools features [N, H, W, C] in boxes [R, 5] to [R, *output_size, C]. A box is (batch index, x1,
    y1, x2, y2) in pixels of the image, ends included; `spatial_scale` takes pixels to features
    (1/16 in VGG-16). Coordinates are rounded, bins grown to whole features and clipped to the map
    as in `torchvision.ops.roi_pool`, but with exact integer bin edges, where torchvision's float32
    ones are one feature off at a few sizes (57 into 7 bins). An empty bin is 0, and so is every bin
    of a box whose batch index is none, such as -1 in a list filled up to a static length. Boxes get
    no gradient; that of x goes to the first maximum of each bin. Raises UserError for complex
    features and for maps without a pixel.
    """
    refuse_complex(x, "roi_max_pool")
    refuse_empty_maps(x, "roi_max_pool")
    scaled = boxes[:, 1:].astype(jnp.float32) * spatial_scale
    corners = lax.round(scaled, lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32)

    @jax.checkpoint  # else every box would keep its masks for the gradient
    def pool(image: Array, corners: Array) -> Array:
        x1, y1, x2, y2 = corners
        in_rows = _bin_masks(y1, y2, output_size[0], x.shape[1])
        in_cols = _bin_masks(x1, x2, output_size[1], x.shape[2])
        is_image = jnp.arange(x.shape[0]) == image
        features = jnp.where(is_image[:, None, None, None], x, jnp.zeros_like(x))
        features = features.sum(0, dtype=x.dtype)
        # Columns before rows, so that of equal maxima the first in row-major order wins.
        bins = _max_where(_max_where(features, in_cols), in_rows)
        nonempty = in_rows.any(1)[:, None] & in_cols.any(1)[None]
        return jnp.where(nonempty[..., None], bins, jnp.zeros_like(bins))

    return lax.map(lambda box: pool(*box), (boxes[:, 0].astype(jnp.int32), corners))


def _bin_masks(first: Array, last: Array, bins: int, size: int) -> Array:
    """Marks the places of an axis that belong to each bin of first..last: bool [bins, size]."""
    length = jnp.maximum(last - first + 1, 1)
    index = jnp.arange(bins, dtype=first.dtype)
    starts = first + index * length // bins
    ends = first - (-(index + 1) * length // bins)  # rounded up
    place = jnp.arange(size, dtype=first.dtype)[None]
    return (starts[:, None] <= place) & (place < ends[:, None])


@jax.custom_jvp
def _max_where(x: Array, mask: Array) -> Array:
    """Maximum over places l where mask[b, l]: [A, L, C], bool [B, L] -> [B, A, C].

    The least value there is where the mask has no place.
    """
    return jnp.where(mask[:, None, :, None], x[None], least_value(x.dtype)).max(2)


@_max_where.defjvp
def _max_where_jvp(primals, tangents):
    x, mask = primals
    dx, _ = tangents
    y = _max_where(x, mask)
    holds_maximum = mask[:, None, :, None] & (x[None] == y[:, :, None])
    place = lax.broadcasted_iota(jnp.int32, holds_maximum.shape, 2)
    first = jnp.where(holds_maximum, place, x.shape[1]).min(2, keepdims=True)
    return y, jnp.where(place == first, dx[None], 0).sum(2)
