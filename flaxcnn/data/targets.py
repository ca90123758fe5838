"""Targets that have a place in the image, and how they move with it.

The targets of an example are a pytree. Its nodes of the classes below are in pixels of the image:
`move` takes them along when the image is warped, and leaves anything else (a label) as it is. In a
batch every array has a leading axis N; what is written here is of one example, to be vmapped.

Shapes do not depend on the example: what an image has fewer of is filled up with zeros, and a bool
says what counts. What leaves the image stops counting, and its place becomes zeros too, which no
arithmetic can make infinite. Coordinates and matrices are those of `data/geometry.py`: x to the
right and y down from the top left corner, the centre of the first pixel at (0.5, 0.5).
"""

from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from flaxcnn.data import geometry
from flaxcnn.data.geometry import Array, Size
from flaxcnn.data.rounding import product

IGNORED = 255  # the class of a mask's pixels that are not known
LEAST_SIDE = 1.0  # pixels; of a box that counts

Leaf = Array | np.ndarray  # NumPy's where targets are read


@runtime_checkable
class Place(Protocol):
    """A node of targets that moves with its image."""

    def moved(self, matrix: Array, size: Size) -> Self:
        """Where `matrix` takes it, in an output of `size` (height, width)."""
        ...


class Boxes(struct.PyTreeNode):
    """Up to M boxes around objects.

    A box with a side below 1 pixel after moving is no longer valid, as with torchvision's
    `v2.SanitizeBoundingBoxes`; nor is one of which less than `least_share` of its area is left
    (min_visibility in albumentations).
    """

    boxes: Leaf  # float32 [M, 4]: left, top, right, bottom in pixels
    valid: Leaf  # bool [M]
    labels: Leaf  # int32 [M]
    crowd: Leaf | None = None  # bool [M]: around many objects (COCO's iscrowd)
    area: Leaf | None = None  # float32 [M]: pixels that the object covers, which COCO sorts by
    # float32 [6], how the image was read: scales and shifts in x and y from its file's pixels to
    # the image's, and the file's width and height. Moving does not change it.
    placed: Leaf | None = None
    least_share: float = struct.field(pytree_node=False, default=0.0)

    def moved(self, matrix: Array, size: Size) -> Self:
        """The smallest boxes around the warped corners, cut at the borders."""
        height, width = size
        boxes = jnp.asarray(self.boxes)
        whole = geometry.warp_boxes(boxes, matrix)
        cut = jnp.clip(whole, 0, jnp.asarray([[width, height, width, height]], jnp.float32))
        sides = cut[:, 2:] - cut[:, :2]
        share = _share_left(whole, sides)
        valid = self.valid & (sides >= LEAST_SIDE).all(axis=-1) & (share >= self.least_share)
        area = self.area
        if area is not None:
            area = jnp.where(valid, area * share * _growth(boxes, matrix), 0)
        return self.replace(boxes=jnp.where(valid[:, None], cut, 0), valid=valid, area=area)


def _share_left(whole: Array, sides: Array) -> Array:
    """The share of each box's area that is left when its sides are cut to `sides` [M, 2]."""
    before = (whole[:, 2:] - whole[:, :2]).prod(axis=-1)
    return sides.prod(axis=-1) / jnp.where(before > 0, before, 1)


def _growth(boxes: Array, matrix: Array) -> Array:
    """What warping multiplies an area at each box's centre by, [M]."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    depth = product(matrix[2, 0], x) + product(matrix[2, 1], y) + matrix[2, 2]
    return jnp.abs(geometry.determinant(matrix) / depth**3)  # the Jacobian's determinant


class Keypoints(struct.PyTreeNode):
    """K named points, as the joints of a body.

    Where the image is mirrored, the two points of each of `pairs` are exchanged: what was a left
    hand looks like a right one.
    """

    points: Leaf  # float32 [K, 2]: (x, y) in pixels
    visible: Leaf  # bool [K]: known, and inside the image
    pairs: tuple[tuple[int, int], ...] = struct.field(pytree_node=False, default=())
    limbs: tuple[tuple[int, int], ...] = struct.field(pytree_node=False, default=())  # to draw

    def moved(self, matrix: Array, size: Size) -> Self:
        """The points; those outside, though not those on the border, are no longer visible."""
        height, width = size
        points = geometry.warp_points(jnp.asarray(self.points), matrix)
        visible = jnp.asarray(self.visible)
        if self.pairs:
            order = np.arange(len(self.points))
            for a, b in self.pairs:
                order[[a, b]] = order[[b, a]]
            mirrored = geometry.determinant(matrix) < 0
            points = jnp.where(mirrored, points[order], points)
            visible = jnp.where(mirrored, visible[order], visible)
        inside = (points >= 0) & (points <= jnp.asarray([[width, height]], jnp.float32))
        visible &= inside.all(axis=-1)
        return self.replace(points=jnp.where(visible[:, None], points, 0), visible=visible)


class Mask(struct.PyTreeNode):
    """A class for each pixel."""

    classes: Leaf  # uint8 [H, W]; 255 is ignored

    def moved(self, matrix: Array, size: Size) -> Self:
        """Each pixel takes the class of the nearest one; beyond the borders it is `IGNORED`."""
        classes = jnp.asarray(self.classes)[..., None]
        warped = geometry.warp_image(classes, matrix, size=size, nearest=True, fill=IGNORED)
        return self.replace(classes=warped[..., 0])


def move(targets: Any, matrix: Array, size: Size) -> Any:
    """The targets of one example, any pytree, where `matrix` takes them.

    `matrix` is float32 [3, 3], as of `data/geometry.py` and `images.fit_matrix`; `size` is
    (height, width) of the image it makes. Nodes without a place stay as they are.
    """
    return jax.tree.map(
        lambda node: node.moved(matrix, size) if isinstance(node, Place) else node,
        targets,
        is_leaf=_is_place,
    )


def has_places(targets: Any) -> bool:
    """Whether anything in `targets` moves with the image."""
    return any(map(_is_place, jax.tree.leaves(targets, is_leaf=_is_place)))


def _is_place(node: Any) -> bool:
    return isinstance(node, Place)


def move_classes(classes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`Mask.moved` of classes uint8 [H, W], on the host; `matrix` neither turns nor shears."""
    matrix = matrix.astype(np.float64)
    rows, columns = (
        np.floor((np.arange(side) + 0.5 - matrix[axis, 2]) / matrix[axis, axis]).astype(int)
        for axis, side in ((1, size[0]), (0, size[1]))
    )
    height, width = classes.shape
    moved = classes[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    inside = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return np.where(inside, moved, np.uint8(IGNORED))
