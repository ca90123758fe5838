"""What an operation on one image is: a warp, which is a matrix, or any other change."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from flaxcnn.data.augment.settings import check_number
from flaxcnn.data.geometry import Array, Fill, Size


@dataclasses.dataclass(frozen=True)
class Warp:
    """A geometric transform: `draw(key, (height, width))` is a matrix of `geometry`.

    Neighbouring warps of a policy with equal `fill` become one; None never looks beyond the
    borders. `aligned`: neither turns nor shears. `whole`: only flips and moves by whole pixels.
    """

    draw: Callable[[Array, Size], Array]
    fill: Fill | None = "reflect"
    aligned: bool = False
    whole: bool = False


def _moves_nothing(key: Array, size: Size) -> Iterable[Array]:
    return ()


@dataclasses.dataclass(frozen=True)
class Change:
    """Any other transform: `apply(key, image)`, float32 [H, W, C] in 0..1 to the same.

    `moves(key, (height, width))` are the matrices, one after the other, by which `apply` of the
    same key takes points along; None if no matrix can say it.
    """

    apply: Callable[[Array, Array], Array]
    needs_color: bool = False
    keeps_size: bool = True  # if not, it is done to every image
    moves: Callable[[Array, Size], Iterable[Array]] | None = _moves_nothing


Operation = Warp | Change


def with_probability(operation: Operation, p: float) -> Operation:
    """The same operation, done with probability `p`."""
    check_number("p", p, 0, 1)
    if p == 1:
        return operation

    def happens(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, 1), p)

    def sometimes(key: Array, matrix: Array) -> Array:
        return jnp.where(happens(key), matrix, jnp.eye(3, dtype=matrix.dtype))

    if isinstance(operation, Warp):
        draw = operation.draw
        return dataclasses.replace(
            operation, draw=lambda key, size: sometimes(key, draw(key, size))
        )
    apply, moves = operation.apply, operation.moves
    return dataclasses.replace(
        operation,
        apply=lambda key, image: jnp.where(happens(key), apply(key, image), image),
        moves=moves and (lambda key, size: [sometimes(key, m) for m in moves(key, size)]),
    )
