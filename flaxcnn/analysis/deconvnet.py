"""What excites a unit: the patches of images, and what a deconvnet makes of them.

Zeiler and Fergus: Visualizing and understanding convolutional networks, ECCV 2014
(arXiv:1311.2901), section 2.1 and Figure 2.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from flaxcnn.analysis.forward import Forward
from flaxcnn.errors import UserError

Array = jax.Array


class Patches(NamedTuple):
    """The patches that excite a unit most, the strongest first; N of them.

    Attributes:
      images: int [N], which of the images they are of.
      corners: int [N, 2], row and column of their first pixel.
      values: float32 [N], the unit's activations.
      patches: float32 [N, h, w, C], cut out of the images.
      reconstructions: float32 [N, h, w, C], of the deconvnet.
    """

    images: np.ndarray
    corners: np.ndarray
    values: np.ndarray
    patches: np.ndarray
    reconstructions: np.ndarray


def reconstruct(
    model: nn.Module, variables: Any, images: ArrayLike, layer: str, unit: int
) -> Array:
    """Sends a unit's strongest activation in each image back to the pixels: [N, H, W, C] float32.

    All other activations of the layer count as 0. Max pooling is undone by its switches, the places
    where the maxima were; ReLUs cut what is negative on the way back; convolutions are transposed.
    What the paper does not treat (response normalisation, averages) is undone by its gradient, as
    BatchNorm is. `layer` is named as in `activations`, `unit` one of its channels. Raises UserError
    for a layer or unit that is not there.
    """
    return _reconstruct(model, layer, unit, variables, jnp.asarray(images))[0]


def find_patches(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    layer: str,
    unit: int,
    count: int = 9,
    batch_size: int = 32,
) -> Patches:
    """The `count` images that excite a unit most, cut to what the unit sees there.

    Of each image the place of its strongest activation counts, as in the paper. All patches are
    squares of what the unit sees away from the borders; at a border they are moved inwards.
    """
    images = jnp.asarray(images)
    if not 1 <= count <= len(images):
        raise UserError(f"{count} patches are wanted of {len(images)} images")
    values = np.concatenate(
        [
            np.asarray(_strongest(model, layer, unit, variables, images[i : i + batch_size]))
            for i in range(0, len(images), batch_size)
        ]
    )
    best = np.argsort(-values, kind="stable")[:count]
    chosen = images[best]
    maps, seen = map(np.asarray, _reconstruct(model, layer, unit, variables, chosen))
    boxes = np.array([_bounding_box(image) for image in seen])  # [N, (row, column), (from, to)]
    size = np.minimum((boxes[:, :, 1] - boxes[:, :, 0]).max(), images.shape[1:3])
    corners = (boxes.sum(2) - size) // 2
    corners = np.clip(corners, 0, np.array(images.shape[1:3]) - size)
    return Patches(
        best,
        corners,
        values[best],
        *(_cut(np.asarray(pictures, np.float32), corners, size) for pictures in (chosen, maps)),
    )


def _cut(pictures: np.ndarray, corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    tall, wide = size
    pairs = zip(pictures, corners, strict=True)
    return np.stack([x[row : row + tall, col : col + wide] for x, (row, col) in pairs])


def _bounding_box(image: np.ndarray) -> list[list[int]]:
    """Rows and columns, from and to, of what is not 0 in [H, W]; all of it if nothing is."""
    places = [np.flatnonzero(image.any(axis)) for axis in (1, 0)]
    return [
        [int(place[0]), int(place[-1]) + 1] if len(place) else [0, size]
        for place, size in zip(places, image.shape, strict=True)
    ]


def _unit(forward: Forward, layer: str, unit: int) -> Any:
    """The variable of a layer with that unit."""
    var = forward.find(layer)
    shape: Sequence[int] = var.aval.shape
    if not 0 <= unit < shape[-1]:
        raise UserError(f"{layer} has units 0 to {shape[-1] - 1}, and {unit} is wanted")
    return var


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _strongest(model: nn.Module, layer: str, unit: int, variables: Any, images: Array) -> Array:
    forward = Forward(model, variables, images)
    (values,) = forward.run([_unit(forward, layer, unit)])
    values = values[..., unit].astype(jnp.float32)
    return values.reshape(len(images), -1).max(1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reconstruct(
    model: nn.Module, layer: str, unit: int, variables: Any, images: Array
) -> tuple[Array, Array]:
    """The reconstructions, and bool [N, H, W]: which pixels the unit's strongest place sees."""

    def activate(images: Array) -> Array:
        forward = Forward(model, variables, images)
        (values,) = forward.run([_unit(forward, layer, unit)], "deconvolution")
        return values[..., unit].reshape(len(images), -1)

    values, back = jax.vjp(activate, images)
    strongest = jnp.arange(values.shape[1])[None] == values.argmax(1)[:, None]
    (maps,) = back(jnp.where(strongest, values, 0))
    return maps.astype(jnp.float32), (maps != 0).any(-1)
