"""Losses and decoders of detectors against their formulas, in loops and float64."""

import jax
import numpy as np
import pytest

from flaxcnn.boxes import make_default_boxes
from flaxcnn.data.targets import Boxes
from flaxcnn.tasks.detection import ssd, yolo_v1, yolo_v2, yolo_v3

SIZE = (40, 60)  # height, width
CLASSES = 3
# Two images: three objects, of which two share a cell, padding and a crowd; and none.
BOXES = np.array(
    [
        [[2, 3, 22, 15], [6, 4, 14, 12], [33, 22, 57, 38], [9, 9, 30, 30], [40, 0, 60, 20]],
        [[0, 0, 0, 0]] * 5,
    ],
    np.float32,
)
TARGETS = Boxes(
    boxes=BOXES,
    valid=np.array([[True, True, True, False, True], [False] * 5]),
    labels=np.array([[2, 0, 1, 1, 0], [0] * 5], np.int32),
    crowd=np.array([[False, False, False, False, True], [False] * 5]),
)
PRIORS = [np.array([[8, 8], [12, 6]], np.float32), np.array([[20, 14], [30, 30]], np.float32)]


def objects(n):
    """(box, label) of each object of an image, and the crowds."""
    rows = zip(TARGETS.boxes[n], TARGETS.labels[n], TARGETS.valid[n], TARGETS.crowd[n], strict=True)
    rows = [(b.astype(np.float64), int(c), crowd) for b, c, valid, crowd in rows if valid]
    return [(b, c) for b, c, crowd in rows if not crowd], [b for b, _, crowd in rows if crowd]


def area(b):
    return (b[2] - b[0]) * (b[3] - b[1])


def shared(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def overlap(a, b):
    return shared(a, b) / (area(a) + area(b) - shared(a, b))


def in_crowd(box, crowds):
    return any(shared(box, crowd) > 0.5 * area(box) for crowd in crowds)


def from_center(x, y, w, h):
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def place(box, grid):
    """Row and column of the cell of a box's centre, and where in it the centre is."""
    y = (box[1] + box[3]) / 2 / SIZE[0] * grid[0]
    x = (box[0] + box[2]) / 2 / SIZE[1] * grid[1]
    return int(y), int(x), x - int(x), y - int(y)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def evaluate(loss, outputs, **settings):
    """The losses [N]; a gradient that is not finite fails."""

    def total(outputs):
        losses = loss(outputs, TARGETS, **settings)
        return losses.sum(), losses

    differentiate = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(outputs)
    assert "scatter" not in differentiate.as_text()  # XLA:GPU's deterministic ones are slow
    (_, losses), gradients = differentiate.compile()(outputs)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient)
    return np.asarray(losses)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.7, shape).astype(np.float32)


def test_yolo_v1_is_the_papers_equation_3():
    outputs = draw(0, 2, 2, 3, 2 * 5 + CLASSES)
    # Of image 0: the second box of cell (0, 0) overlaps more, none of cell (1, 2) overlaps at all,
    # and a box of cell (0, 2) lies in the crowd.
    outputs[0, 0, 0, :10] = [0.4, 0.3, 0.3, 0.3, 0.7, 0.6, 0.5, 0.5, 0.5, 0.4]
    outputs[0, 1, 2, :10] = [0.5, -2, 0.1, 0.1, 0.2, 0.5, -1.5, 0.1, 0.1, 0.3]
    outputs[0, 0, 2, 5:10] = [0.5, 0.5, 0.3, 0.3, 0.9]
    want = []
    for n in range(2):
        cells, crowds = objects(n)[0], objects(n)[1]
        owners = {}
        for box, label in reversed(cells):
            owners[place(box, (2, 3))[:2]] = box, label
        loss = 0.0
        for r in range(2):
            for c in range(3):
                values = outputs[n, r, c].astype(np.float64)
                numbers, chances = values[:10].reshape(2, 5), values[10:]
                guess = [
                    from_center((c + x) * 20, (r + y) * 20, w * w * SIZE[1], h * h * SIZE[0])
                    for x, y, w, h, _ in numbers
                ]
                best = -1
                if (r, c) in owners:
                    box, label = owners[r, c]
                    ious = [overlap(g, box) for g in guess]
                    w, h = (box[2] - box[0]) / SIZE[1], (box[3] - box[1]) / SIZE[0]
                    _, _, x, y = place(box, (2, 3))
                    best = int(np.argmax(ious))
                    if max(ious) == 0:  # Darknet: the nearest
                        true = np.array([(c + x) / 3, (r + y) / 2, w, h])
                        away = [
                            np.linalg.norm([(c + a) / 3, (r + b) / 2, e * e, f * f] - true)
                            for a, b, e, f, _ in numbers
                        ]
                        best = int(np.argmin(away))
                    a, b, e, f, confidence = numbers[best]
                    loss += 5 * ((a - x) ** 2 + (b - y) ** 2)
                    loss += 5 * ((e - w**0.5) ** 2 + (f - h**0.5) ** 2)
                    loss += (confidence - ious[best]) ** 2
                    loss += ((chances - np.eye(CLASSES)[label]) ** 2).sum()
                for j in range(2):
                    if j != best and not in_crowd(guess[j], crowds):
                        loss += 0.5 * numbers[j, 4] ** 2
        want.append(loss)
    settings = dict(size=SIZE, num_classes=CLASSES)
    found = evaluate(yolo_v1.loss, outputs, **settings)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    no_crowds = TARGETS.replace(crowd=None)
    assert jax.eval_shape(lambda x: yolo_v1.loss(x, no_crowds, **settings), outputs).shape == (2,)


def loop_map(output, priors, n, owners, threshold, of_object, of_empty):
    """A sum over the cells and priors of a map; `owners` (row, column, prior) -> (box, label)."""
    grid = output.shape[:2]
    truths, crowds = objects(n)
    loss = 0.0
    for r in range(grid[0]):
        for c in range(grid[1]):
            values = output[r, c].astype(np.float64).reshape(len(priors), -1)
            for a, (tx, ty, tw, th, to, *classes) in enumerate(values):
                guess = from_center(
                    (c + sigmoid(tx)) * SIZE[1] / grid[1],
                    (r + sigmoid(ty)) * SIZE[0] / grid[0],
                    np.exp(tw) * priors[a][0],
                    np.exp(th) * priors[a][1],
                )
                if (r, c, a) in owners:
                    box, label = owners[r, c, a]
                    _, _, x, y = place(box, grid)
                    want = x, y, *np.log((box[2:] - box[:2]) / priors[a])
                    weight = 2 - area(box) / (SIZE[0] * SIZE[1])
                    t = (tx, ty, tw, th, to)
                    loss += of_object(
                        t, want, weight, np.array(classes), label, overlap(guess, box)
                    )
                elif max((overlap(guess, b) for b, _ in truths), default=0) <= threshold:
                    loss += 0 if in_crowd(guess, crowds) else of_empty(to)
    return loss


def find_owners(n, priors, grids):
    """For each map, (row, column, prior) -> (box, label) of the first object there."""
    owners = [{} for _ in priors]
    every = [(k, a, prior) for k, of_map in enumerate(priors) for a, prior in enumerate(of_map)]
    for box, label in reversed(objects(n)[0]):
        sides = box[2:] - box[:2]
        k, a, _ = max(every, key=lambda e: overlap([0, 0, *sides], [0, 0, *e[2]]))
        owners[k][(*place(box, grids[k])[:2], a)] = box, label
    return owners


@pytest.mark.slow
def test_yolo_v2_is_darknets_region_layer():
    outputs = draw(1, 2, 2, 3, 2 * (5 + CLASSES))
    outputs[0, 1, 1, 5 + CLASSES :][:5] = [4, 0, 0, 0, 1]  # overlaps the object of the next cell
    outputs[0, 0, 2, :5] = [0, 0, -1, -1, 2]  # in the crowd

    def of_object(t, want, weight, classes, label, iou):
        place = (sigmoid(t[0]) - want[0]) ** 2 + (sigmoid(t[1]) - want[1]) ** 2
        sides = (t[2] - want[2]) ** 2 + (t[3] - want[3]) ** 2
        entropy = np.log(np.exp(classes).sum()) - classes[label]
        return weight * (place + sides) / 2 + 5 * (sigmoid(t[4]) - iou) ** 2 / 2 + entropy

    want = [
        loop_map(
            outputs[n],
            PRIORS[1],
            n,
            find_owners(n, PRIORS[1:], [(2, 3)])[0],
            0.4,
            of_object,
            lambda to: sigmoid(to) ** 2 / 2,
        )
        for n in range(2)
    ]
    settings = dict(size=SIZE, priors=PRIORS[1], ignore_threshold=0.4)
    found = evaluate(yolo_v2.loss, outputs, **settings)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_yolo_v3_is_darknets_yolo_layer():
    grids = [(4, 6), (2, 3)]
    outputs = tuple(draw(2 + k, 2, *grid, 2 * (5 + CLASSES)) for k, grid in enumerate(grids))
    outputs[1][0, 1, 1, 5 + CLASSES :][:5] = [4, 0, 0, 0, 1]
    outputs[0][0, 1, 4, :5] = [0, 0, -1, -1, 2]

    def entropy(logit, target):
        return -target * np.log(sigmoid(logit)) - (1 - target) * np.log(1 - sigmoid(logit))

    def of_object(t, want, weight, classes, label, iou):
        place = entropy(t[0], want[0]) + entropy(t[1], want[1])
        sides = (t[2] - want[2]) ** 2 / 2 + (t[3] - want[3]) ** 2 / 2
        of_classes = entropy(classes, np.eye(CLASSES)[label]).sum()
        return weight * (place + sides) + entropy(t[4], 1) + of_classes

    want = []
    for n in range(2):
        owners = find_owners(n, PRIORS, grids)
        assert n == 1 or all(owners)  # objects on both maps
        want.append(
            sum(
                loop_map(out[n], of_map, n, own, 0.3, of_object, lambda to: entropy(to, 0))
                for out, of_map, own in zip(outputs, PRIORS, owners, strict=True)
            )
        )
    found = evaluate(yolo_v3.loss, outputs, size=SIZE, priors=PRIORS, ignore_threshold=0.3)
    np.testing.assert_allclose(found, want, rtol=1e-5)


ANCHORS = make_default_boxes(
    SIZE, [(4, 6), (2, 3)], scales=(0.2, 0.4, 0.7), ratios=((2,), (2,)), strides=None
)


def test_ssd_is_the_papers_equations_1_to_3():
    count = len(ANCHORS)
    outputs = draw(4, 2, count, 4), draw(5, 2, count, CLASSES + 1)
    truths, crowds = objects(0)
    matches = {}
    for p, anchor in enumerate(ANCHORS):
        ious = [overlap(anchor, box) for box, _ in truths]
        if max(ious) >= 0.5:
            matches[p] = int(np.argmax(ious))
    best = [max(range(count), key=lambda p: overlap(ANCHORS[p], box)) for box, _ in truths]
    assert len(set(best)) == len(best) and len(matches) > len(best)
    matches |= {p: m for m, p in enumerate(best)}

    logits = outputs[1][0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = 0.0
    for p, m in matches.items():
        box, label = truths[m]
        center, sides = (ANCHORS[p][:2] + ANCHORS[p][2:]) / 2, ANCHORS[p][2:] - ANCHORS[p][:2]
        want = [
            *((box[:2] + box[2:]) / 2 - center) / sides / 0.1,
            *np.log((box[2:] - box[:2]) / sides) / 0.2,
        ]
        for error in np.abs(outputs[0][0, p] - want):
            loss += 0.5 * error**2 if error < 1 else error - 0.5
        loss -= log_p[p, label + 1]
    negatives = [p for p in range(count) if p not in matches and not in_crowd(ANCHORS[p], crowds)]
    assert len(negatives) > 3 * len(matches)
    hardest = sorted(log_p[negatives, 0])[: 3 * len(matches)]
    loss -= sum(hardest)
    found = evaluate(ssd.loss, outputs, anchors=ANCHORS)
    np.testing.assert_allclose(found, [loss / len(matches), 0], rtol=1e-5)


def test_decoded_boxes_and_scores_by_hand():
    size, priors = (40, 60), [PRIORS[0][:1], PRIORS[1][:1]]
    v1, v2 = draw(6, 1, 2, 3, 5 + CLASSES), draw(7, 1, 2, 3, 5 + CLASSES)
    v1[0, 1, 2, :5] = [0.5, 0.25, 0.5, 0.6, 0.8]
    v1[0, 0, 0, 5:] = [-1, 0.5, 0.2]
    offsets, logits = draw(8, 1, len(ANCHORS), 4), draw(9, 1, len(ANCHORS), CLASSES + 1)

    def decode(v1, v2, offsets, logits):
        return (
            yolo_v1.decode(v1, size=size, num_classes=CLASSES),
            yolo_v2.decode(v2, size=size, priors=priors[1]),
            yolo_v3.decode([v2, v2 + 1], size=size, priors=priors),
            ssd.decode((offsets, logits), size=size, anchors=ANCHORS),
        )

    one, two, three, last = jax.tree.map(np.asarray, jax.jit(decode)(v1, v2, offsets, logits))
    assert one[0].shape == (1, 6, 4) and one[1].shape == (1, 6, CLASSES)
    # (50, 25), 15 by 14.4 pixels
    np.testing.assert_allclose(one[0][0, 5], [42.5, 17.8, 57.5, 32.2], rtol=1e-5)
    np.testing.assert_allclose(one[1][0, 5], np.maximum(v1[0, 1, 2, 5:], 0) * 0.8, rtol=1e-5)
    assert one[1][0, 0, 0] == 0  # not negative, nor positive by two signs

    def cut(box):
        return np.clip(box, 0, [60, 40, 60, 40])

    tx, ty, tw, th, to, *classes = v2[0, 1, 1].astype(np.float64)
    box = from_center(
        20 + sigmoid(tx) * 20, 20 + sigmoid(ty) * 20, *np.exp([tw, th]) * PRIORS[1][0]
    )
    softmax = np.exp(classes) / np.exp(classes).sum()
    np.testing.assert_allclose(two[0][0, 4], cut(box), rtol=1e-5)
    np.testing.assert_allclose(two[1][0, 4], sigmoid(to) * softmax, rtol=1e-5)

    assert three[0].shape == (1, 12, 4)
    tx, ty, tw, th, to, *classes = v2[0, 1, 1].astype(np.float64) + 1
    box = from_center(
        20 + sigmoid(tx) * 20, 20 + sigmoid(ty) * 20, *np.exp([tw, th]) * PRIORS[1][0]
    )
    np.testing.assert_allclose(three[0][0, 6 + 4], cut(box), rtol=1e-5)
    score = sigmoid(to) * sigmoid(np.array(classes))
    np.testing.assert_allclose(three[1][0, 6 + 4], score, rtol=1e-5)

    x1, y1, x2, y2 = ANCHORS[7]
    x, y, w, h = offsets[0, 7] * [0.1, 0.1, 0.2, 0.2]
    center = (x1 + x2) / 2 + x * (x2 - x1), (y1 + y2) / 2 + y * (y2 - y1)
    box = from_center(*center, np.exp(w) * (x2 - x1), np.exp(h) * (y2 - y1))
    np.testing.assert_allclose(last[0][0, 7], cut(box), rtol=1e-5)
    softmax = np.exp(logits[0, 7]) / np.exp(logits[0, 7]).sum()
    np.testing.assert_allclose(last[1][0, 7], softmax[1:], rtol=1e-5)
