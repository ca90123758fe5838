import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boxes_golden import GOLDEN

from flaxcnn.boxes import detect, nms, soft_nms

CASES = GOLDEN["nms"]
MOST = max(len(case["boxes"]) for case in CASES)
THRESHOLDS = [float(t) for t in CASES[0]["picks"]]


def padded(name):
    """One array of all cases, filled up to the longest."""
    rows = [np.asarray(case[name], np.float32) for case in CASES]
    fill = [[(0, MOST - len(row))] + [(0, 0)] * (row.ndim - 1) for row in rows]
    return np.stack([np.pad(r, f) for r, f in zip(rows, fill, strict=True)])


BOXES, SCORES = padded("boxes"), padded("scores")
LABELS = padded("labels").astype(np.int32)
NO_LABELS = np.zeros_like(LABELS)
VALID = np.arange(MOST)[None] < np.asarray([[len(case["boxes"])] for case in CASES])


def picks(kept):
    return [
        np.asarray(indices)[np.asarray(valid)].tolist()
        for indices, valid in zip(kept.indices, kept.valid, strict=True)
    ]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_picks_are_those_of_torchvision(threshold):
    """Ties of scores, boxes without an area, and overlaps that equal the threshold."""
    for name, labels in (("picks", NO_LABELS), ("class_picks", LABELS)):
        kept = jax.vmap(lambda b, s, c, v: nms(b, s, threshold, MOST, labels=c, valid=v))(
            BOXES, SCORES, labels, VALID
        )
        assert picks(kept) == [by_score(case, case[name][str(threshold)]) for case in CASES]


def by_score(case, wanted):
    """As they are, of one class; of several, torchvision leaves the order of equal scores open."""
    return sorted(wanted, key=lambda i: (-case["scores"][i], i))


def test_fewer_outputs_are_the_first_ones():
    want = CASES[0]["picks"]["0.5"]
    assert len(want) > 30
    boxes, scores = BOXES[0], SCORES[0]
    first = jax.jit(lambda s: nms(jnp.asarray(boxes), s, 0.5, 30))
    assert "scatter" not in first.lower(scores).as_text()
    kept = first(scores)
    assert kept.indices.tolist() == want[:30] and kept.valid.all()
    assert kept.scores.tolist() == scores[kept.indices].tolist()
    none = first(np.full_like(scores, np.nan))
    assert not none.valid.any() and not none.indices.any() and not none.scores.any()
    few = jax.jit(lambda s: nms(jnp.asarray(boxes), s, 0.5, 30, candidates=20))(scores)
    surest = np.argsort(-scores, kind="stable")[:20]
    assert few.indices[few.valid].tolist() == [i for i in want if i in surest]


def loop_detect(boxes, scores, iou_threshold, score_threshold, agnostic=False):
    """(box, class) pairs that are kept, by loops in float64."""
    pairs = [(-scores[p, c], p, c) for p in range(len(scores)) for c in range(scores.shape[1])]
    kept = []
    for negative, p, c in sorted(pairs):
        if -negative <= score_threshold:
            continue
        place = boxes[p] if boxes.ndim == 2 else boxes[p, c]
        rivals = [other for other, _, label in kept if agnostic or label == c]
        if all(loop_iou(place, other) <= iou_threshold for other in rivals):
            kept.append((place, -negative, c))
    return kept


def loop_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize(
    ("own_boxes", "agnostic"),
    [
        (True, False),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_detections_are_those_of_loops(own_boxes, agnostic):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 30, (12, *([3] if own_boxes else []), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, corner.shape)], axis=-1)
    scores = rng.uniform(0, 1, (12, 3)).round(2)
    want = loop_detect(boxes, scores, 0.3, 0.25, agnostic)
    assert 3 < len(want) < 40
    settings = dict(score_threshold=0.25, max_outputs=40, class_agnostic=agnostic)
    found = jax.jit(lambda b, s: detect(b, s, iou_threshold=0.3, **settings))(
        boxes.astype(np.float32), scores.astype(np.float32)
    )
    found = jax.tree.map(np.asarray, found)
    count = int(found.valid.sum())
    assert count == len(want)
    np.testing.assert_allclose(found.boxes[:count], [w[0] for w in want], rtol=1e-6)
    np.testing.assert_allclose(found.scores[:count], [w[1] for w in want], rtol=1e-6)
    assert found.labels[:count].tolist() == [w[2] for w in want]
    assert not found.boxes[count:].any() and not found.labels[count:].any()


@pytest.mark.parametrize("method", ["linear", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_soft_nms_is_the_papers_figure_2(method):
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 20, (14, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, corner.shape)], axis=-1)
    scores, labels = rng.uniform(0.1, 1, 14), rng.integers(0, 2, 14)
    left, want = dict(enumerate(scores)), []
    while left and max(left.values()) > 0.2:
        best = max(left, key=left.__getitem__)
        want.append((best, left.pop(best)))
        for i in left:
            iou = loop_iou(boxes[i], boxes[best])
            soft = np.exp(-(iou**2) / 0.4) if method == "gaussian" else 1 - iou * (iou >= 0.3)
            left[i] *= soft if labels[i] == labels[best] else 1
    settings = dict(method=method, sigma=0.4, score_threshold=0.2)
    kept = jax.jit(lambda b, s, c: soft_nms(b, s, 14, labels=c, **settings))(
        boxes.astype(np.float32), scores.astype(np.float32), labels
    )
    kept = jax.tree.map(np.asarray, kept)
    count = int(kept.valid.sum())
    assert kept.indices[:count].tolist() == [i for i, _ in want]
    np.testing.assert_allclose(kept.scores[:count], [s for _, s in want], rtol=1e-5)
    assert 2 < count < 14 and not kept.scores[count:].any()
