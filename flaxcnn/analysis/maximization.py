"""An image that excites a unit as much as any can: activation maximisation.

Erhan, Bengio, Courville, Vincent 2009; the image's spectrum is what is optimised, and it is moved a
little before every step (Olah, Mordvintsev, Schubert: Feature visualization, Distill 2017), so that
patterns appear instead of noise.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from flaxcnn.analysis.forward import Forward
from flaxcnn.errors import UserError

Array = jax.Array

# How colours of photographs vary together, from light and dark to the rarest (Olah et al. 2017).
_COLORS = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]], np.float32)


def maximize_activation(
    model: nn.Module,
    variables: Any,
    layer: str,
    unit: int,
    image_shape: Sequence[int],
    *,
    low: Any = -2.0,
    high: Any = 2.0,
    steps: int = 256,
    learning_rate: float = 0.05,
    shift: int = 8,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes an image of `image_shape` (height, width, channels) that excites a unit of a layer.

    `layer` is named as in `activations` ("output" for a class). Of maps the unit's mean is raised.
    The image stays between `low` and `high`, numbers or one per channel: what the darkest and the
    brightest pixel are after normalisation. `shift` is by how many pixels it is moved at most.
    Returns the image float32 [H, W, C], and the activation before each step, [steps].
    Raises UserError for a layer or unit that is not there.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}, and must be at least 1")
    channels = image_shape[2]
    bounds = [
        jnp.broadcast_to(jnp.asarray(bound, jnp.float32), (channels,)) for bound in (low, high)
    ]
    image, values = _maximize(
        model,
        layer,
        unit,
        (*image_shape,),
        steps,
        learning_rate,
        shift,
        variables,
        *bounds,
        jax.random.key(seed),
    )
    return np.asarray(image), np.asarray(values)


@functools.partial(jax.jit, static_argnums=range(7))
def _maximize(
    model: nn.Module,
    layer: str,
    unit: int,
    shape: tuple[int, int, int],
    steps: int,
    learning_rate: float,
    shift: int,
    variables: Any,
    low: Array,
    high: Array,
    key: Array,
) -> tuple[Array, Array]:
    height, width, _ = shape
    # What one step changes falls with the frequency, as in natural images.
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    scale = np.sqrt(height * width) / np.maximum(frequency, 1 / max(height, width))
    scale = jnp.asarray(scale[..., None] / scale.max() * np.sqrt(height * width), jnp.float32)

    least, most = low[None, None, :], high[None, None, :]

    def paint(spectrum: Array) -> Array:
        wave = lax.complex(spectrum[..., 0], spectrum[..., 1]) * scale
        x = jnp.fft.irfft2(wave, (height, width), axes=(0, 1), norm="ortho") / 4
        if shape[2] == 3:
            x = jnp.einsum("hwc,dc->hwd", x, jnp.asarray(_COLORS / np.hypot.reduce(_COLORS).max()))
        return least + (most - least) * jax.nn.sigmoid(x)

    def activation(spectrum: Array, key: Array) -> Array:
        moved = jnp.roll(paint(spectrum), jax.random.randint(key, (2,), -shift, shift + 1), (0, 1))
        forward = Forward(model, variables, moved[None])
        var = forward.find(layer)
        if not 0 <= unit < var.aval.shape[-1]:
            raise UserError(f"{layer} has units 0 to {var.aval.shape[-1] - 1}, not {unit}")
        (values,) = forward.run([var])
        return values[..., unit].mean().astype(jnp.float32)

    optimizer = optax.adam(learning_rate)

    def step(carry: Any, key: Array) -> Any:
        spectrum, state = carry
        value, gradient = jax.value_and_grad(activation)(spectrum, key)
        updates, state = optimizer.update(-gradient, state)
        return (optax.apply_updates(spectrum, updates), state), value

    start_key, key = jax.random.split(key)
    start = 0.01 * jax.random.normal(start_key, (height, width // 2 + 1, shape[2], 2))
    carry = (start, optimizer.init(start))
    (spectrum, _), values = lax.scan(step, carry, jax.random.split(key, steps))
    return paint(spectrum), values
