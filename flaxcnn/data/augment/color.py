"""Colours of one image: float32 [H, W, C] in 0..1 to the same, C = 3 (RGB) or 1.

What has a counterpart in Pillow's ImageEnhance or ImageOps computes the same; the steps that are
integers there (histograms, means, bits) are integers here, on pixels rounded to 0..255, so that no
order of summation can change a bit.
"""

import jax
import jax.numpy as jnp

from flaxcnn.data.rounding import product

Array = jax.Array


def luma(image: Array) -> Array:
    """Grey [H, W, 1] by ITU-R BT.601; a grey image is its own."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return product(0.299, red) + product(0.587, green) + product(0.114, blue)


def blend(degenerate: Array | float, image: Array, factor: Array | float) -> Array:
    """From `degenerate` (factor 0) through `image` (1) and beyond, cut to 0..1."""
    return jnp.clip(degenerate + product(factor, image - degenerate), 0, 1)


def brightness(image: Array, factor: Array | float) -> Array:
    """Blends with black."""
    return blend(0.0, image, factor)


def contrast(image: Array, factor: Array | float) -> Array:
    """Blends with the mean of its luma."""
    grey = _to_bytes(luma(image))
    mean = jnp.floor(grey.sum().astype(jnp.float32) / grey.size + 0.5) / 255
    return blend(mean, image, factor)


def saturation(image: Array, factor: Array | float) -> Array:
    """Blends with its luma ("Color" in Pillow and AutoAugment)."""
    return blend(luma(image), image, factor)


def grayscale(image: Array) -> Array:
    """Its luma, in as many channels as before."""
    return jnp.broadcast_to(luma(image), image.shape)


def hue(image: Array, turns: Array | float) -> Array:
    """Adds `turns` of the colour circle to the hue of HSV; 1 is all the way round.

    A grey image has no hue.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    divisor = jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + product(6, turns)

    def channel(offset: int) -> Array:
        k = (sextant + offset) % 6
        return value - product(chroma, jnp.clip(jnp.minimum(k, 4 - k), 0, 1))

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def gamma(image: Array, exponent: Array | float) -> Array:
    """Each value to the power `exponent`; below 1 is brighter."""
    return jnp.power(jnp.maximum(image, 0), exponent)


def invert(image: Array) -> Array:
    """The negative."""
    return jnp.maximum(1 - image, 0)  # rounding may go below


def posterize(image: Array, bits: Array | int) -> Array:
    """Keeps the highest `bits` (0..8) of each value's byte."""
    dropped = 8 - jnp.asarray(bits, jnp.int32)
    kept = jnp.left_shift(jnp.right_shift(_to_bytes(image), dropped), dropped)
    return kept.astype(jnp.float32) / 255


def solarize(image: Array, threshold: Array | float) -> Array:
    """Negative of the values that are not below `threshold` (0..1)."""
    return jnp.where(image >= threshold, invert(image), image)


def autocontrast(image: Array) -> Array:
    """Stretches each channel to the whole of 0..1; a channel of one value stays as it is."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    spread = high - low
    stretched = jnp.clip((image - low) / jnp.where(spread > 0, spread, 1), 0, 1)
    return jnp.where(spread > 0, stretched, image)


def equalize(image: Array) -> Array:
    """Makes each channel's histogram flat, by Pillow's rule; values become bytes / 255."""
    pixels = _to_bytes(image)
    return jnp.stack([_equalize(pixels[..., c]) for c in range(image.shape[-1])], axis=-1)


def _equalize(pixels: Array) -> Array:
    """int32 [H, W] in 0..255 -> float32 [H, W]."""
    counts = jnp.zeros(256, jnp.int32).at[pixels.reshape(-1)].add(1, mode="promise_in_bounds")
    below = jnp.cumsum(counts) - counts
    brightest = counts[pixels.max()]
    step = (pixels.size - brightest) // 255
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(step > 0, table, jnp.arange(256))
    return table.at[pixels].get(mode="promise_in_bounds").astype(jnp.float32) / 255


def _to_bytes(image: Array) -> Array:
    return jnp.floor(product(jnp.clip(image, 0, 1), 255) + 0.5).astype(jnp.int32)
