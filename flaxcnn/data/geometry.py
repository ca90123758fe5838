"""Projective transforms as matrices, and what they do to images, masks, points and boxes.

A matrix is float32 [3, 3] and takes a column (x, y, 1) of the input to the output, in pixels from
the top left corner: x to the right, y down, the centre of the first pixel at (0.5, 0.5). Boxes and
points move by the same matrix as their image, and a chain of transforms is one matrix: the image is
sampled once. Nothing here is a `dot`, which accelerators would round to fewer bits.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxcnn.data.rounding import lerp, product

Array = jax.Array
Fill = str | float  # "reflect" (edge not repeated), "edge", or a constant
Size = tuple[int, int]  # height, width


def make_matrix(rows: Sequence[Sequence[Array | float]]) -> Array:
    """A float32 [3, 3] matrix from nested scalars, traced or not."""
    return jnp.stack([jnp.stack([jnp.asarray(v, jnp.float32) for v in row]) for row in rows])


def translation(x: Array | float, y: Array | float) -> Array:
    """Moves the picture `x` pixels to the right and `y` down."""
    return make_matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def scaling(x: Array | float, y: Array | float) -> Array:
    """Stretches the picture by `x` across and `y` down, away from the origin."""
    return make_matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def rotation(degrees: Array | float) -> Array:
    """Turns the picture counterclockwise about the origin, as PIL does."""
    angle = jnp.asarray(degrees, jnp.float32) * (jnp.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return make_matrix([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def shearing(x: Array | float, y: Array | float) -> Array:
    """Moves each row right by `x` times its y, and each column down by `y` times its x."""
    return make_matrix([[1, x, 0], [y, 1, 0], [0, 0, 1]])


def perspective(corners: Array, size: Size) -> Array:
    """Takes the corners of an image of `size` to `corners` [4, 2], (x, y) each.

    In the order top left, top right, bottom right, bottom left; closed form of Heckbert 1989,
    section 2.2.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = [(c[0], c[1]) for c in corners]
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    scale = product(dx1, dy2) - product(dx2, dy1)
    g = (product(dx3, dy2) - product(dx2, dy3)) / scale
    h = (product(dx1, dy3) - product(dx3, dy1)) / scale
    of_unit_square = make_matrix(
        [
            [x1 - x0 + product(g, x1), x3 - x0 + product(h, x3), x0],
            [y1 - y0 + product(g, y1), y3 - y0 + product(h, y3), y0],
            [g, h, 1],
        ]
    )
    height, width = size
    return compose(scaling(1 / width, 1 / height), of_unit_square)


def compose(*matrices: Array) -> Array:
    """One matrix that does what `matrices` do one after the other, the first one first."""

    def after(first: Array, second: Array) -> Array:
        return sum(
            (product(second[:, k, None], first[k, None, :]) for k in range(1, 3)),
            product(second[:, 0, None], first[0, None, :]),
        )

    return functools.reduce(after, matrices)


def centered(matrix: Array, size: Size) -> Array:
    """The same transform about the centre of an image of `size` instead of the origin."""
    y, x = size[0] / 2, size[1] / 2
    return compose(translation(-x, -y), matrix, translation(x, y))


def invert(matrix: Array) -> Array:
    """The way back. Exact for flips and moves by whole pixels."""
    rows = _rows(matrix)
    adjugate = make_matrix([[_cofactor(rows, j, i) for j in range(3)] for i in range(3)])
    return adjugate / sum(product(rows[0][j], adjugate[j, 0]) for j in range(3))


def determinant(matrix: Array) -> Array:
    """Below 0 where the picture is mirrored; of an affine matrix, how much its area grows."""
    rows = _rows(matrix)
    return sum(
        (product(rows[0][j], _cofactor(rows, 0, j)) for j in (1, 2)),
        product(rows[0][0], _cofactor(rows, 0, 0)),
    )


def _rows(matrix: Array) -> list[list[Array]]:
    return [[matrix[i, j] for j in range(3)] for i in range(3)]


def _cofactor(rows: list[list[Array]], i: int, j: int) -> Array:
    i1, i2, j1, j2 = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
    return product(rows[i1][j1], rows[i2][j2]) - product(rows[i1][j2], rows[i2][j1])


def _apply(matrix: Array, x: Array, y: Array) -> tuple[Array, Array]:
    u, v, w = (product(matrix[i, 0], x) + product(matrix[i, 1], y) + matrix[i, 2] for i in range(3))
    return u / w, v / w


def warp_points(points: Array, matrix: Array) -> Array:
    """Points float32 [N, 2], (x, y) each, where `matrix` takes them."""
    return jnp.stack(_apply(matrix, points[:, 0], points[:, 1]), axis=-1)


def warp_boxes(boxes: Array, matrix: Array) -> Array:
    """Boxes float32 [N, 4], (left, top, right, bottom): the smallest around each warped box.

    They are not cut at the borders of the image.
    """
    left, top, right, bottom = (boxes[:, i] for i in range(4))
    x, y = _apply(
        matrix,
        jnp.stack([left, right, right, left], -1),
        jnp.stack([top, top, bottom, bottom], -1),
    )
    return jnp.stack([x.min(-1), y.min(-1), x.max(-1), y.max(-1)], axis=-1)


def warp_image(
    image: Array,
    matrix: Array,
    *,
    size: Size | None = None,
    nearest: bool = False,
    fill: Fill = "reflect",
) -> Array:
    """The image [H, W, C] that `matrix` makes of `image`, of `size` if given.

    Bilinear, or `nearest`, which keeps any dtype: for masks. `fill` is what lies beyond the borders
    of `image`. Nothing is averaged when the picture shrinks.
    """
    height, width = size or image.shape[:2]
    x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5
    return sample_image(
        image, *_apply(invert(matrix), x[None, :], y[:, None]), nearest=nearest, fill=fill
    )


def warp_axes(
    image: Array,
    matrix: Array,
    *,
    size: Size | None = None,
    nearest: bool = False,
    fill: Fill = "reflect",
) -> Array:
    """`warp_image` for a `matrix` that neither turns nor shears: rows, then columns; faster."""
    height, width = size or image.shape[:2]
    inverse = invert(matrix)
    x = product(inverse[0, 0], jnp.arange(width) + 0.5) + inverse[0, 2]
    y = product(inverse[1, 1], jnp.arange(height) + 0.5) + inverse[1, 2]
    rows = _sample_axis(image, y, 0, nearest, fill)
    return _sample_axis(rows, x, 1, nearest, fill)


def sample_image(
    image: Array, x: Array, y: Array, *, nearest: bool = False, fill: Fill = "reflect"
) -> Array:
    """`image` [H, W, C] at the points (`x`, `y`), each float32 [H', W']: [H', W', C]."""
    image = jnp.asarray(image)

    def tap(row: Array, column: Array) -> Array:
        row, row_inside = _inside(row, image.shape[0], fill)
        column, column_inside = _inside(column, image.shape[1], fill)
        values = image.at[row, column].get(mode="promise_in_bounds")
        if isinstance(fill, str):
            return values
        return jnp.where((row_inside & column_inside)[..., None], values, _constant(fill, image))

    if nearest:
        return tap(_floor(y), _floor(x))
    column, row = _floor(x - 0.5), _floor(y - 0.5)
    dx, dy = (x - 0.5 - column)[..., None], (y - 0.5 - row)[..., None]
    above = lerp(tap(row, column), tap(row, column + 1), dx)
    below = lerp(tap(row + 1, column), tap(row + 1, column + 1), dx)
    return lerp(above, below, dy)


def _sample_axis(image: Array, at: Array, axis: int, nearest: bool, fill: Fill) -> Array:
    along = [None, None, None]
    along[axis] = slice(None)  # type: ignore[call-overload]
    shaped = tuple(along)

    def tap(index: Array) -> Array:
        index, inside = _inside(index, image.shape[axis], fill)
        values = jnp.take(image, index, axis=axis, mode="clip")
        if isinstance(fill, str):
            return values
        return jnp.where(inside[shaped], values, _constant(fill, image))

    if nearest:
        return tap(_floor(at))
    first = _floor(at - 0.5)
    share = (at - 0.5 - first)[shaped]
    return lerp(tap(first), tap(first + 1), share)


def _floor(x: Array) -> Array:
    return jnp.floor(x).astype(jnp.int32)


def _constant(fill: float | str, image: Array) -> Array:
    return jnp.asarray(fill, image.dtype)


def _inside(index: Array, size: int, fill: Fill) -> tuple[Array, Array]:
    """An index within 0..size-1 for any int32, and whether it was there before."""
    inside = (index >= 0) & (index < size)
    if fill == "reflect" and size > 1:
        index = index % (2 * size - 2)
        index = jnp.minimum(index, 2 * size - 2 - index)
    return jnp.clip(index, 0, size - 1), inside
