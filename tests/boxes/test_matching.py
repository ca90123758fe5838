import jax
import jax.numpy as jnp
import numpy as np
from boxes_golden import GOLDEN

from flaxcnn.boxes import (
    match_by_overlap,
    match_cells,
    match_default_boxes,
    match_priors,
    sample_balanced,
)

MATCHING = GOLDEN["matching"]


def test_matches_are_those_of_torchvision():
    iou = np.pad(np.asarray(MATCHING["iou"], np.float32), ((0, 2), (0, 0)))
    valid = np.arange(7) < 5
    iou[5:] = 1  # boxes that do not count

    def match(valid):
        return (
            match_by_overlap(iou, valid, 0.7, 0.3),
            match_by_overlap(iou, valid, 0.7, 0.3, keep_best=True),
        )

    match = jax.jit(match)
    plain, keep_best = match(valid)
    assert plain.tolist() == MATCHING["matches"]
    assert keep_best.tolist() == MATCHING["keep_best"] != MATCHING["matches"]
    for matches in match(valid & False):
        assert (matches == -1).all()


def test_a_box_that_no_anchor_overlaps_has_no_best_one():
    iou = np.zeros((2, 3), np.float32)
    iou[0, 1] = 0.1
    matches = jax.jit(lambda i: match_by_overlap(i, jnp.ones(2, bool), 0.7, 0.3, keep_best=True))(
        iou
    )
    assert matches.tolist() == [-1, 0, -1]


def loop_pairs(iou, valid, threshold):
    """MultiBox's bipartite matching, the highest overlap first, then all above the threshold."""
    matches = np.full(iou.shape[1], -1)
    for p in range(iou.shape[1]):
        best = max((m for m in range(len(iou)) if valid[m]), key=lambda m: (iou[m, p], -m))
        if iou[best, p] >= threshold:
            matches[p] = best
    pairs = [(-iou[m, p], m, p) for m in range(len(iou)) for p in range(iou.shape[1]) if valid[m]]
    boxes, anchors = set(), set()
    for negative, m, p in sorted(pairs):
        if negative < 0 and m not in boxes and p not in anchors:
            matches[p] = m
            boxes.add(m)
            anchors.add(p)
    return matches.tolist()


def test_default_boxes_are_matched_as_by_loops_and_as_by_torchvision():
    match = jax.jit(match_default_boxes)
    apart = np.asarray(MATCHING["apart"], np.float32)
    assert match(apart, np.ones(5, bool)).tolist() == MATCHING["ssd"]
    rng = np.random.default_rng(0)
    for valid in (np.ones(5, bool), np.arange(5) % 2 == 1):
        iou = (rng.permutation(300).reshape(5, 60) / 300).astype(np.float32)
        iou[:, 3] += 1  # all want the same one first
        iou[:, 4] += 0.9
        iou[2] *= rng.random(60) < 0.02
        assert match(iou, valid).tolist() == loop_pairs(iou, valid, 0.5)


def test_cells_and_priors_are_matched_as_by_loops():
    size, grids = (40, 60), [(4, 6), (2, 3)]
    priors = [np.array([[6, 6], [16, 8]], np.float32), np.array([[20, 30]], np.float32)]
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 30, (9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 22, (9, 2))], axis=1)
    boxes[0] = [50, 30, 70, 50]  # its centre is the last corner of the image
    boxes[7] = boxes[1]
    valid = np.arange(9) != 2

    cells = np.full(grids[0], -1)
    of_priors = [np.full((*grid, len(p)), -1) for grid, p in zip(grids, priors, strict=True)]
    every = np.concatenate(priors)
    for m in reversed(range(9)):  # the first one is written last
        if not valid[m]:
            continue
        x, y = (boxes[m, 0] + boxes[m, 2]) / 2, (boxes[m, 1] + boxes[m, 3]) / 2
        w, h = boxes[m, 2] - boxes[m, 0], boxes[m, 3] - boxes[m, 1]

        def cell(grid, x=x, y=y):
            row, column = int(y / size[0] * grid[0]), int(x / size[1] * grid[1])
            return min(row, grid[0] - 1), min(column, grid[1] - 1)

        cells[cell(grids[0])] = m
        shared = [min(w, p[0]) * min(h, p[1]) for p in every]
        iou = [s / (w * h + p[0] * p[1] - s) for s, p in zip(shared, every, strict=True)]
        best = int(np.argmax(iou))
        which, place = (0, best) if best < 2 else (1, best - 2)
        of_priors[which][(*cell(grids[which]), place)] = m

    def match(b):
        return (
            match_cells(b, valid, grids[0], size),
            *match_priors(b, valid, priors, grids, size),
        )

    found = jax.jit(match)(boxes.astype(np.float32))
    for one, want in zip(found, [cells, *of_priors], strict=True):
        np.testing.assert_array_equal(one, want)
    assert all((w >= 0).any() for w in of_priors)


def test_samples_are_balanced_and_uniform():
    draw = jax.jit(
        jax.vmap(lambda key, p, n: sample_balanced(key, p, n, 8, 0.25), in_axes=(0, None, None))
    )
    keys = jax.random.split(jax.random.key(0), 2000)
    kinds = np.arange(20) % 3  # 7 positives, 7 negatives, 6 of neither kind
    sample = jax.tree.map(np.asarray, draw(keys, kinds == 0, kinds == 1))
    assert sample.valid.all() and (sample.positive.sum(1) == 2).all()
    assert (kinds[sample.indices] == np.where(sample.positive, 0, 1)).all()
    assert all(len(set(row)) == 8 for row in sample.indices)
    drawn = np.bincount(sample.indices.reshape(-1), minlength=20) / 2000
    np.testing.assert_allclose(drawn[kinds == 0], 2 / 7, atol=0.05)
    np.testing.assert_allclose(drawn[kinds == 1], 6 / 7, atol=0.05)

    more = jax.tree.map(np.asarray, draw(keys[:2], np.arange(20) == 4, np.arange(20) > 4))
    assert more.valid.all() and (more.positive.sum(1) == 1).all()  # negatives fill up

    few = jax.tree.map(np.asarray, draw(keys[:2], np.arange(20) == 4, np.arange(20) < 3))
    assert (few.valid.sum(1) == 4).all() and (few.positive.sum(1) == 1).all()
    assert (few.indices[:, 0] == 4).all() and (np.sort(few.indices[:, 1:4]) == [0, 1, 2]).all()
    assert not few.indices[:, 4:].any() and not few.positive[:, 1:].any()
