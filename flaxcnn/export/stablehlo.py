"""A network as StableHLO: one file that jax runs, on CPU, GPU and TPU, without flaxcnn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from flaxcnn.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    path: str | Path,
    function: Callable[[jax.Array], Any],
    image_shape: Sequence[int],
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes `function`, images uint8 [N, *image_shape] -> arrays [N, ...], of any N >= 1.

    `Predictor.function` is one. What it closes over, weights above all, is in the file. Each
    platform has its own form of every layer in it. `jax.export.deserialize` reads it.

    Raises UserError if flatbuffers is not installed, or the function cannot be exported.
    """
    try:
        import flatbuffers  # noqa: F401 (jax.export needs it, and says so only at the end)
    except ImportError:
        raise UserError(
            f"{path}: StableHLO needs flatbuffers: pip install 'flaxcnn[stablehlo]'"
        ) from None
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *image_shape), jnp.uint8)
    try:
        exported = jax.export.export(jax.jit(function), platforms=platforms)(images)
        content = exported.serialize()
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: the network cannot be exported: {reason}") from error
    Path(path).write_bytes(content)
