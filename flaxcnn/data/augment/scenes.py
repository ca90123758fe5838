"""Changes that look at the boxes of objects: a part that shows them, and four images in one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.boxes import box_iou
from flaxcnn.data import geometry
from flaxcnn.data.augment.settings import check_number, check_range
from flaxcnn.data.geometry import Array
from flaxcnn.data.rounding import product, uniform
from flaxcnn.data.targets import Boxes
from flaxcnn.errors import UserError

_TRIALS = 50  # parts that are drawn, of which the first that will do is taken
_GREY = 0.5  # where a mosaic has no image


@dataclasses.dataclass(frozen=True)
class Scene:
    """A change that depends on the boxes: `apply(key, image, boxes)` is both of the same size."""

    apply: Callable[[Array, Array, Boxes], tuple[Array, Boxes]]


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """`apply(key, images [4, H, W, C], their boxes)` is one image [H, W, C] and 4 M boxes."""

    apply: Callable[[Array, Array, Boxes], tuple[Array, Boxes]]


def random_iou_crop(
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.5, 2.0),
) -> Scene:
    """A part that overlaps with an object, enlarged to the whole image (Liu 2016, section 2.2).

    One of `overlaps`, or the whole image, is chosen with equal chance; then sides are drawn, as
    shares of the image's in `scale`, until width over height is in `ratio`, the part's IoU with
    some object is at least the overlap chosen, and the centre of some object is inside: at most 50
    times, else it is the whole image. Objects whose centre is outside are left out; crowds are cut.
    As torchvision's `v2.RandomIoUCrop`, but for parts of whole pixels.
    """
    if not isinstance(overlaps, tuple) or not overlaps:
        raise UserError(f"overlaps must be a tuple of numbers in 0..1, got {overlaps!r}")
    for overlap in overlaps:
        check_number("overlaps", overlap, 0, 1)
    check_range("scale", scale, 0.01, 1)
    check_range("ratio", ratio, 0.01, 100)

    def apply(key: Array, image: Array, targets: Boxes) -> tuple[Array, Boxes]:
        height, width = image.shape[:2]
        choice, sides_key, place_key = jax.random.split(key, 3)
        chosen = jax.random.randint(choice, (), 0, len(overlaps) + 1)
        least = jnp.asarray([*overlaps, 2.0], jnp.float32)[chosen]  # 2: the whole image
        sides = uniform(sides_key, *scale, (_TRIALS, 2))
        corner = product(jax.random.uniform(place_key, (_TRIALS, 2)), 1 - sides)
        pixels = jnp.asarray([[width, height]], jnp.float32)
        sides, corner = product(sides, pixels), product(corner, pixels)
        parts = jnp.concatenate([corner, corner + sides], axis=1)

        boxes, valid = jnp.asarray(targets.boxes), jnp.asarray(targets.valid)
        crowd = jnp.zeros_like(valid) if targets.crowd is None else jnp.asarray(targets.crowd)
        objects = valid & ~crowd
        inside = _centers_inside(parts, boxes)
        overlap = jnp.where(objects[None], box_iou(parts, boxes), 0).max(1)
        form = sides[:, 0] / sides[:, 1]
        will_do = (overlap >= least) & (inside & objects[None]).any(1)
        will_do &= (form >= ratio[0]) & (form <= ratio[1])
        first = jnp.argmax(will_do)
        found = will_do.any()
        whole = jnp.asarray([0, 0, width, height], jnp.float32)
        x1, y1, x2, y2 = jnp.where(found, parts[first], whole)
        matrix = geometry.compose(
            geometry.translation(-x1, -y1),
            geometry.scaling(width / (x2 - x1), height / (y2 - y1)),
        )
        kept = targets.replace(valid=valid & (inside[first] | crowd | ~found))
        size = (height, width)
        return geometry.warp_axes(image, matrix, fill="edge"), kept.moved(matrix, size)

    return Scene(apply)


def _centers_inside(parts: Array, boxes: Array) -> Array:
    """Whether the centre of each box [M, 4] is in each part [T, 4]: bool [T, M]."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    left, top, right, bottom = (parts[:, i, None] for i in range(4))
    x, y = x[None], y[None]
    return (left < x) & (x < right) & (top < y) & (y < bottom)


def mosaic(p: float = 1.0, scale: tuple[float, float] = (0.5, 1.0)) -> Mosaic:
    """Four images around a point, each in a corner of its own (Bochkovskiy et al. 2020, figure 3).

    With probability `p`; else the first one. The point is drawn in the middle half of the image,
    and each image is scaled by a number in `scale`, both sides alike. It begins at the point, so
    that what is far from it is cut off; where there is none it is grey. Each image of a batch is
    joined by the three that follow it, the last ones by the first.
    """
    check_number("p", p, 0, 1)
    check_range("scale", scale, 0.1, 10)

    def apply(key: Array, images: Array, targets: Boxes) -> tuple[Array, Boxes]:
        height, width = images.shape[1:3]
        happens, at, sizes = jax.random.split(key, 3)
        x, y = jnp.round(product(uniform(at, 0.25, 0.75, (2,)), jnp.asarray([width, height])))
        scales = uniform(sizes, *scale, (4,))
        rows, columns = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
        canvas, pieces = jnp.full(images.shape[1:], _GREY, images.dtype), []
        for i in range(4):
            right, below = i % 2 == 1, i >= 2
            # Its corner at the point: the right lower one of what lies to the left and above.
            matrix = geometry.compose(
                geometry.scaling(scales[i], scales[i]),
                geometry.translation(
                    x if right else x - product(scales[i], width),
                    y if below else y - product(scales[i], height),
                ),
            )
            piece = geometry.warp_axes(images[i], matrix, fill=_GREY)
            of_rows = rows > y if below else rows < y
            of_columns = columns > x if right else columns < x
            canvas = jnp.where((of_rows[:, None] & of_columns[None])[..., None], piece, canvas)
            left_top = (x if right else 0.0 * x, y if below else 0.0 * y)
            extent = (height - y if below else y, width - x if right else x)
            moved = _take(targets, i).moved(
                geometry.compose(matrix, geometry.translation(-left_top[0], -left_top[1])), extent
            )
            pieces.append(moved.moved(geometry.translation(*left_top), (height, width)))
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)
        alone = [_take(targets, 0), *(_hide(_take(targets, i)) for i in range(1, 4))]
        alone = jax.tree.map(lambda *x: jnp.concatenate([jnp.asarray(a) for a in x]), *alone)
        chosen = jax.random.bernoulli(happens, p)
        return jax.tree.map(
            lambda a, b: jnp.where(chosen, a, b), (canvas, joined), (images[0], alone)
        )

    return Mosaic(apply)


def _take(targets: Boxes, index: int) -> Boxes:
    return jax.tree.map(lambda x: x[index], targets)


def _hide(targets: Boxes) -> Boxes:
    return jax.tree.map(jnp.zeros_like, targets)


def mosaic_batch(
    mosaic: Mosaic, keys: Array, images: Array, targets: Any, following: Callable[[Array], Array]
) -> tuple[Array, Boxes]:
    """A mosaic of each of [N, H, W, C] and the three after it; `following` moves rows by one."""

    def stack(x: Array) -> Array:
        rows: Sequence[Array] = [jnp.asarray(x)]
        for _ in range(3):
            rows = [*rows, following(rows[-1])]
        return jnp.stack(rows, axis=1)

    return jax.vmap(mosaic.apply)(keys, stack(images), jax.tree.map(stack, targets))
