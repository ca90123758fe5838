"""Fixed kernels: what a convolution does to a photograph, without anything learned."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.layers import conv

KERNELS: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "sobel_x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "sobel_y": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "blur": ((1 / 9,) * 3,) * 3,
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
}


def filter_image(image: np.ndarray, kernel: str | Sequence[Sequence[float]]) -> np.ndarray:
    """Correlates each channel of an image [H, W, C] with a kernel [h, w]: float32 [H, W, C].

    `kernel` is a name in `KERNELS` or rows of numbers, of odd size. The border continues the image
    mirrored, its edge pixels once, so that the result is `cv2.filter2D`'s. Raises UserError for
    another name or shape, and for an image smaller than half the kernel.
    """
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise UserError(f"unknown kernel {kernel!r}: there are {', '.join(KERNELS)}")
        kernel = KERNELS[kernel]
    try:
        taps = np.asarray(kernel, np.float32)
    except ValueError:
        raise UserError(f"the rows of a kernel must be equally long: {kernel}") from None
    if taps.ndim != 2 or 0 in taps.shape or not all(size % 2 for size in taps.shape):
        raise UserError(f"a kernel has rows and columns of odd numbers, not shape {taps.shape}")
    if any(size // 2 >= side for size, side in zip(taps.shape, image.shape[:2], strict=True)):
        raise UserError(f"a kernel of {taps.shape} is too large for an image of {image.shape}")
    taps = jnp.broadcast_to(jnp.asarray(taps)[:, :, None, None], (*taps.shape, 1, image.shape[2]))
    x = jnp.asarray(image, jnp.float32)[None]
    return np.asarray(conv(x, taps, padding="REFLECT", groups=image.shape[2]))[0]
