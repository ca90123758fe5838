"""The check that every network makes of its images."""

import jax

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
