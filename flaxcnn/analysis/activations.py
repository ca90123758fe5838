"""The output of any layer of a network, by the layer's name."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.typing import ArrayLike

from flaxcnn.analysis.forward import Forward
from flaxcnn.errors import UserError

Array = jax.Array


def activations(
    model: nn.Module, variables: Any, images: ArrayLike, names: Sequence[str] = ("*",)
) -> dict[str, Array]:
    """The outputs of layers on images [N, H, W, C], in inference and in order of computation.

    `names` are paths of modules as in the parameters ("stage1_block1/expand"), stages ("stage2"),
    "output" for what the network returns, or shell patterns of them; by default all. Raises
    UserError with the nearest names for one that no layer has.
    """
    return dict(_activations(model, tuple(names), variables, jnp.asarray(images)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _activations(
    model: nn.Module, names: tuple[str, ...], variables: Any, images: Array
) -> OrderedDict[str, Array]:  # of a dict, jit sorts the keys
    forward = Forward(model, variables, images)
    chosen = forward.match(names)
    values = forward.run([forward.layers[name] for name in chosen])
    return OrderedDict(zip(chosen, values, strict=True))


def layer_shapes(
    model: nn.Module, variables: Any, image_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """The shape without N of every layer's output on an image of (height, width, channels).

    In order of computation; traces, and computes nothing.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return {name: shape[1:] for name, shape in Forward(model, variables, images).shapes().items()}


def first_filters(
    model: nn.Module, variables: Any, image_shape: Sequence[int]
) -> tuple[str, np.ndarray]:
    """The path and the kernel [h, w, C, F] of the convolution that is computed first.

    Raises UserError for a network without one.
    """
    parameters: dict[str, Any] = traverse_util.flatten_dict(variables["params"], sep="/")  # pyright: ignore
    for name in layer_shapes(model, variables, image_shape):
        kernel = parameters.get(f"{name}/kernel")
        if kernel is not None and np.ndim(kernel) == 4:
            return name, np.asarray(kernel)
    raise UserError(f"{type(model).__name__} has no convolution whose filters could be drawn")
