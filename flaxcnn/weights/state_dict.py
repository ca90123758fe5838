"""What people have of a network's weights: checkpoints, prefixed names, arrays of any library."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.weights.rules import Convention

# Where a checkpoint has its weights; of several the first: timm's order, averaged weights first.
CHECKPOINT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
MAX_DEPTH = 4  # of checkpoints within checkpoints; one within itself has no end


def find_state_dict(checkpoint: Any) -> Mapping[Any, Any]:
    """Finds the mapping of names to arrays in a checkpoint.

    It is `checkpoint` itself, or the dict under the first of CHECKPOINT_KEYS that it has. Raises
    UserError for what is no mapping of names to arrays.
    """
    tensors: Any = checkpoint
    for _ in range(MAX_DEPTH):
        if not isinstance(tensors, Mapping):
            break
        key = next((k for k in CHECKPOINT_KEYS if isinstance(tensors.get(k), Mapping)), None)
        if key is None:
            break
        tensors = tensors[key]
    if not isinstance(tensors, Mapping):
        raise UserError(f"weights must map names to arrays, and are a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if isinstance(tensor, Mapping) or hasattr(tensor, "state_dict"):
            raise UserError(
                f"weights: {name!r} is a {type(tensor).__name__}, and not an array; a checkpoint "
                f"has a dict of arrays under one of {', '.join(CHECKPOINT_KEYS)}"
            )
    return tensors


def find_tensors(checkpoint: Mapping[str, Any], convention: Convention) -> dict[str, Any]:
    """Finds the tensors in a checkpoint, and takes off the prefixes that all weights' names have.

    Raises UserError for what is no mapping of names to arrays (`find_state_dict`).
    """
    tensors = find_state_dict(checkpoint)
    weights = [name for name in tensors if not re.fullmatch(convention.ignored, name)]
    prefix = _find_prefix(weights, convention.prefixes)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _find_prefix(names: list[str], prefixes: tuple[str, ...]) -> str:
    """The longest chain of `prefixes` that all names begin with."""
    found = ""
    while names:
        longer = [p for p in prefixes if all(name.startswith(found + p) for name in names)]
        if not longer:
            break
        found += longer[0]
    return found


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of an array of any library."""
    return tuple(tensor.shape) if hasattr(tensor, "shape") else np.shape(tensor)


def to_float32(name: str, tensor: Any) -> np.ndarray:
    """Makes a float32 array of an array of any library; half precision keeps its values.

    Raises UserError, with the name, for anything but floating-point numbers.
    """
    if hasattr(tensor, "detach"):  # of PyTorch: it may want gradients, or be on a GPU
        tensor = tensor.detach().cpu()
        try:
            tensor = tensor.numpy()
        except TypeError:
            tensor = tensor.float().numpy()  # bfloat16 and float8, which NumPy does not have
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"weights: {name} holds {array.dtype}, and not floating-point numbers")
    return np.asarray(array, np.float32)
