"""Which box each anchor, prior or cell of a grid is to predict.

Every function is of one image, to be vmapped: M boxes [M, 4], of which `valid` [M] count. A match
is the index of a box, or below 0. Equal overlaps go to the box with the lower index.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcnn.boxes.geometry import to_centers

Array = jax.Array
Size = tuple[int, int]  # height, width

BACKGROUND = -1
BETWEEN = -2  # neither an object nor background


def match_by_overlap(
    iou: Array, valid: Array, high: float, low: float, *, keep_best: bool = False
) -> Array:
    """Matches of RPN and Faster R-CNN: int32 [P], from the overlaps float32 [M, P].

    An anchor takes the box that it overlaps most if that is `high` or more, is `BACKGROUND` below
    `low`, and `BETWEEN` otherwise. With `keep_best` an anchor that no other surpasses in overlap
    with some box (all of several) takes the box that itself overlaps most (Ren et al. 2015, section
    3.1.2). As torchvision's `Matcher`, but for boxes that overlap with no anchor: they have no
    best one, where there all have it; and images without boxes are all background.
    """
    iou = jnp.where(valid[:, None], iou, -1)
    best, box = iou.max(0), jnp.argmax(iou, axis=0).astype(jnp.int32)
    matches = jnp.where(best < high, BETWEEN, box)
    matches = jnp.where(best < low, BACKGROUND, matches)
    if keep_best:
        most = iou.max(1, keepdims=True)
        matches = jnp.where(((iou == most) & (most > 0)).any(0), box, matches)
    return matches.astype(jnp.int32)


def match_default_boxes(iou: Array, valid: Array, threshold: float = 0.5) -> Array:
    """Matches of SSD: int32 [P], a box or `BACKGROUND`, from the overlaps float32 [M, P].

    First each box gets the default box that it overlaps most, the pair of the highest overlap
    first, and no default box twice (bipartite, as in MultiBox and the authors' Caffe code; where
    two boxes want the same one, torchvision gives it to the later one and the other gets none).
    Then the rest take the box they overlap most, if that is `threshold` or more.
    """
    return _match_pairs(iou, valid, match_by_overlap(iou, valid, threshold, threshold))


def _match_pairs(iou: Array, valid: Array, matches: Array) -> Array:
    """Pairs of the highest overlap first: those that are each other's best of what is left."""
    boxes, anchors = (lax.iota(jnp.int32, size) for size in iou.shape)

    def goes_on(state: tuple[Array, Array]) -> Array:
        return (state[0] > 0).any()

    def pair(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, matches = state
        anchor = jnp.argmax(left, axis=1).astype(jnp.int32)  # the best of each box
        box = jnp.argmax(left, axis=0).astype(jnp.int32)  # the best of each anchor
        mutual = (box[anchor] == boxes) & (left.max(1) > 0)
        paired = mutual[:, None] & (anchor[:, None] == anchors[None])  # [M, P]
        taken = paired.any(0)
        matches = jnp.where(taken, jnp.argmax(paired, axis=0).astype(jnp.int32), matches)
        return jnp.where(mutual[:, None] | taken[None], 0, left), matches

    start = jnp.where(valid[:, None], iou, 0), matches
    return lax.while_loop(goes_on, pair, start)[1]


def match_cells(boxes: Array, valid: Array, grid: Size, size: Size) -> Array:
    """The box whose centre lies in each cell: int32 [rows, columns], or `BACKGROUND`.

    Redmon et al. 2016 (YOLOv1), section 2; `grid` is (rows, columns) over an image of `size`. Of
    several boxes in a cell the first.
    """
    row, column = _find_cells(boxes, grid, size)
    rows, columns = (lax.iota(jnp.int32, n) for n in grid)
    inside = (row[:, None, None] == rows[None, :, None]) & (
        column[:, None, None] == columns[None, None]
    )
    return _first(inside & valid[:, None, None])


def match_priors(
    boxes: Array,
    valid: Array,
    priors: Sequence[np.ndarray | Array],
    grids: Sequence[Size],
    size: Size,
) -> list[Array]:
    """The box that each prior of each cell is to predict: int32 [rows, columns, A] of each grid.

    A box belongs to the cell of its centre and, of the priors of all grids (widths and heights
    [A, 2] in pixels), to the one with the highest IoU, as if both had one centre: YOLOv2 with one
    grid, v3 with three (Redmon and Farhadi 2018, section 2.1). Of several boxes the first; of equal
    priors too.
    """
    sides = to_centers(boxes)[:, 2:]
    every = jnp.concatenate([jnp.asarray(p, jnp.float32) for p in priors])
    shared = jnp.minimum(sides[:, None], every[None]).prod(-1)
    union = sides.prod(-1)[:, None] + every.prod(-1)[None] - shared
    best = jnp.argmax(shared / union, axis=-1).astype(jnp.int32)
    matches, first = [], 0
    for of_grid, grid in zip(priors, grids, strict=True):
        row, column = _find_cells(boxes, grid, size)
        shape = (*grid, len(of_grid))
        places = [lax.broadcasted_iota(jnp.int32, (1, *shape), axis) for axis in (1, 2, 3)]
        wanted = [x[:, None, None, None] for x in (row, column, best - first)]
        inside = valid[:, None, None, None]
        for place, want in zip(places, wanted, strict=True):
            inside &= place == want
        matches.append(_first(inside))
        first += len(of_grid)
    return matches


def _find_cells(boxes: Array, grid: Size, size: Size) -> tuple[Array, Array]:
    """The row and the column of the cell that holds the centre of each box, int32 [M]."""
    center = to_centers(boxes)[:, :2]
    row = jnp.floor(center[:, 1] * (grid[0] / size[0])).astype(jnp.int32)
    column = jnp.floor(center[:, 0] * (grid[1] / size[1])).astype(jnp.int32)
    return jnp.clip(row, 0, grid[0] - 1), jnp.clip(column, 0, grid[1] - 1)


def _first(inside: Array) -> Array:
    """The first of M boxes that is inside, or `BACKGROUND`: bool [M, ...] -> int32 [...]."""
    first = jnp.argmax(inside, axis=0).astype(jnp.int32)
    return jnp.where(inside.any(0), first, BACKGROUND)
