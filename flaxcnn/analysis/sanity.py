"""Whether attributions say something of the network: three tests from the literature.

Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421): the score must fall fast as the most
important parts of an image are covered, and rise fast as they appear. Parameter randomisation
(Adebayo et al. 2018, arXiv:1810.03292): another network's attributions must be others.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import lax
from jax.typing import ArrayLike

from flaxcnn.analysis.forward import Forward
from flaxcnn.errors import UserError

Array = jax.Array


def order_tiles(heatmap: np.ndarray, tile: int = 16) -> np.ndarray:
    """Ranks the tiles of heatmaps [N, H, W]: int32 [N, H/tile, W/tile], 0 the most important.

    Tiles and not pixels, as a network's score collapses under scattered holes wherever they are.
    Raises UserError unless `tile` divides the sides.
    """
    n, height, width = heatmap.shape
    if tile < 1 or height % tile or width % tile:
        raise UserError(f"tiles of {tile} pixels do not divide images of {height}x{width}")
    sums = heatmap.reshape(n, height // tile, tile, width // tile, tile).sum((2, 4))
    order = np.argsort(-sums.reshape(n, -1), axis=1, kind="stable")
    return np.argsort(order, axis=1).astype(np.int32).reshape(sums.shape)


def replacement_curve(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    others: ArrayLike,
    classes: Array,
    ranks: np.ndarray,
    steps: int = 28,
) -> np.ndarray:
    """The probability of each image's class as its tiles are replaced by those of `others`.

    Float32 [N, steps + 1], from none to all tiles replaced, in order of `ranks` (`order_tiles`).
    Deletion is from the images to their mean colour, insertion from blurred images to the images;
    the area under the curve is its mean.
    """
    arrays = (jnp.asarray(x) for x in (images, others, classes, ranks))
    return np.asarray(_curve(model, steps, variables, *arrays))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _curve(
    model: nn.Module,
    steps: int,
    variables: Any,
    images: Array,
    others: Array,
    classes: Array,
    ranks: Array,
) -> Array:
    count = ranks.shape[1] * ranks.shape[2]
    tall, wide = (images.shape[i] // ranks.shape[i] for i in (1, 2))
    pixel_ranks = jnp.repeat(jnp.repeat(ranks, tall, 1), wide, 2)[..., None]

    def probability(share: Array) -> Array:
        x = jnp.where(pixel_ranks < share * count, others, images)
        forward = Forward(model, variables, x)
        (logits,) = forward.run([forward.find_logits()])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], 1)
        return jnp.exp(chosen[:, 0].astype(jnp.float32))

    return lax.map(probability, jnp.linspace(0, 1, steps + 1)).T


def shuffle_parameters(
    variables: Any, key: Array, modules: Sequence[str] | None = None
) -> dict[str, Any]:
    """The variables with the values of every parameter permuted: another network of its statistics.

    `modules` are those to shuffle, the first names of paths ("classifier"); by default all. Batch
    statistics stay.
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(variables))  # pyright: ignore
    for index, (path, value) in enumerate(sorted(flat.items())):
        if path[0] == "params" and (modules is None or path[1] in modules):
            flat[path] = jax.random.permutation(
                jax.random.fold_in(key, index), value.reshape(-1)
            ).reshape(value.shape)
    return traverse_util.unflatten_dict(flat)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of heatmaps [N, H, W], image by image: [N] in -1..1."""
    ranks = [_rank(np.reshape(maps, (len(maps), -1))) for maps in (first, second)]
    centred = [r - r.mean(1, keepdims=True) for r in ranks]
    norms = [np.sqrt((r**2).sum(1)) for r in centred]
    return (centred[0] * centred[1]).sum(1) / np.maximum(norms[0] * norms[1], 1e-12)


def _rank(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis; equal values have the mean of theirs."""
    result = np.empty(values.shape)
    for row, out in zip(values, result, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        out[:] = (ends - (counts - 1) / 2)[inverse.reshape(-1)]
    return result
