"""Weights and images that both sides of a parity test draw alike: seeded by the source's names."""

import zlib

import numpy as np


def draw_weight(
    name: str, shape: tuple[int, ...], fan_in: int, gain: float, offset: float = 0.0
) -> np.ndarray:
    """Draws one tensor of a network; `shape` is the source's.

    Kernels are normal with variance gain / fan_in. What is named like a scale or a variance is
    uniform in 0.8..1.2, everything else (biases, running means) normal with deviation 0.1. Biases
    are normal around `offset`.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        drawn = np.empty(shape, np.float32)
        # In parts that stay in the processor's cache: what is drawn in float64 is twice as large.
        for part in np.array_split(drawn.reshape(-1), -(-drawn.size // 2**15)):
            part[:] = rng.standard_normal(part.size) * (gain / fan_in) ** 0.5
        return drawn
    if name.endswith((".weight", "gamma", "running_var", "moving_variance", ".var")):
        values = rng.uniform(0.8, 1.2, shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
        if name.endswith(("bias", "beta")):
            values += offset
    return values.astype(np.float32)


def draw_images(batch: int, height: int, width: int, channels: int) -> np.ndarray:
    """Draws smooth images [N, H, W, C] of about unit variance: coarse noise, enlarged."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((batch, -(-height // 4), -(-width // 4), channels))
    images = coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width]
    return (images + 0.3 * rng.standard_normal(images.shape)).astype(np.float32)
