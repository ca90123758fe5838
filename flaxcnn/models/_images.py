"""What networks make of their images first: a check, and another normalisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError


def check_images(images: jax.Array, smallest: int, network: object) -> None:
    """Raises UserError unless images are [N, H, W, C] with H and W at least `smallest`.

    `network` is the module that asks; its class is named in the message.
    """
    name = type(network).__name__
    if images.ndim != 4:
        raise UserError(f"{name} needs images [N, H, W, C], got an array of shape {images.shape}")
    _, height, width, channels = images.shape
    if min(height, width) < smallest:
        raise UserError(
            f"{name} needs images of at least {smallest}x{smallest}, or its maps would vanish; "
            f"got {height}x{width}x{channels}"
        )


_IMAGENET_MEAN = np.array([[[[0.485, 0.456, 0.406]]]])
_IMAGENET_STD = np.array([[[[0.229, 0.224, 0.225]]]])


def normalize_to_one(images: jax.Array) -> jax.Array:
    """Changes pixels normalised with ImageNet's mean and deviation into -1..1, float32.

    torchvision's `transform_input`: [N, H, W, 3] to the same shape. Raises UserError unless images
    have three channels.
    """
    if images.shape[-1] != 3:
        raise UserError(f"transform_input is for RGB images, got an array of shape {images.shape}")
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    scale, shift = _IMAGENET_STD / 0.5, (_IMAGENET_MEAN - 0.5) / 0.5
    return wide * jnp.asarray(scale, wide.dtype) + jnp.asarray(shift, wide.dtype)


def flatten(x: jax.Array) -> jax.Array:
    """Reshapes [N, ...] to [N, all the rest]; of no images, N = 0, -1 could not tell the rest."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def flatten_windows(x: jax.Array, side: int) -> jax.Array:
    """The values of each window, in the order of rows, columns, channels: [N, H', W', values]."""
    rows, columns = (n - side + 1 for n in x.shape[1:3])
    parts = [x[:, i : i + rows, j : j + columns] for i in range(side) for j in range(side)]
    return jnp.concatenate(parts, axis=-1)
