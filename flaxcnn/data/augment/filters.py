"""What looks at a pixel's neighbours: blur, sharpness, elastic deformation; [H, W, C] in 0..1."""

import math

import jax
import jax.numpy as jnp

from flaxcnn.data.augment.color import blend
from flaxcnn.data.geometry import Fill, sample_image
from flaxcnn.data.rounding import product

Array = jax.Array


def gaussian_blur(image: Array, sigma: Array | float, radius: int) -> Array:
    """Gaussian of standard deviation `sigma` pixels, cut off `radius` pixels away.

    The borders are reflected, edge not repeated. `radius` is static and below the image's sides.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(offsets / sigma))
    weights = weights / sum(weights[i] for i in range(2 * radius + 1))
    for axis in (0, 1):
        width = [(0, 0)] * image.ndim
        width[axis] = (radius, radius)
        padded, size = jnp.pad(image, width, "reflect"), image.shape[axis]
        image = sum(
            (
                product(weights[i], jax.lax.slice_in_dim(padded, i, i + size, axis=axis))
                for i in range(1, 2 * radius + 1)
            ),
            product(weights[0], jax.lax.slice_in_dim(padded, 0, size, axis=axis)),
        )
    return image


def blur_radius(sigma: float) -> int:
    """Where a Gaussian of `sigma` has fallen to about one hundredth of its height."""
    return max(1, math.ceil(3 * sigma))


def sharpness(image: Array, factor: Array | float) -> Array:
    """Blends with a smoothed copy (Pillow's): 0 smooth, 1 the image, above 1 sharper.

    The smoothing kernel is 1 around 5, over 13; pixels of the border stay as they are.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = jnp.asarray(image).at[1:-1, 1:-1].set((around + product(4, image[1:-1, 1:-1])) / 13)
    return blend(smooth, image, factor)


def elastic(
    image: Array, displacement: Array, sigma: float, strength: float, fill: Fill = "reflect"
) -> Array:
    """Elastic deformation (Simard 2003, section 2) by `displacement` [H, W, 2] in -1..1.

    The displacement is smoothed with a Gaussian of `sigma` pixels and multiplied by `strength`.
    """
    height, width = image.shape[:2]
    radius = min(blur_radius(sigma), height - 1, width - 1)
    moved = product(strength, gaussian_blur(displacement, sigma, radius))
    x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
    return sample_image(image, x[None, :] + moved[..., 0], y[:, None] + moved[..., 1], fill=fill)
