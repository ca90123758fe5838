"""COCO's numbers against pycocotools on files of its own format, VOC's by hand, and confusions."""

import contextlib
import io
import json

import numpy as np
import pytest

from flaxcnn.tasks.detection.measures import (
    NUMBERS,
    Kept,
    count_confusions,
    match_objects,
    measure_coco,
    measure_voc,
)


def make_arrays(rng, images=12, most=9, found=120, classes=3):
    """What an evaluation keeps, with crowds, empty images, many detections and a letterbox."""
    sizes = rng.integers(200, 700, (images, 2))  # width, height of files
    scale = 256 / sizes.max(axis=1)
    shift = (256 - sizes * scale[:, None]) // 2
    placed = np.stack([scale, scale, *shift.T, *sizes.T], axis=1)
    whole = np.concatenate([sizes, sizes], axis=1)[:, None]

    def draw(count):
        corners = np.sort(rng.random((images, count, 2, 2)), axis=2)
        corners[..., 1, :] = corners[..., 0, :] + (corners[..., 1, :] - corners[..., 0, :]) * (
            rng.random((images, count, 1)) ** 2
        )
        return corners.reshape(images, count, 4) * whole

    true = draw(most)
    labels = rng.integers(-1, classes, (images, most))
    labels[:3] = -1  # nothing to be found
    crowd = (rng.random(labels.shape) < 0.2) & (labels >= 0)
    boxes, said = draw(found), rng.integers(-1, classes, (images, found))
    for image in range(images):  # many are near an object
        near = rng.integers(0, most, found // 2)
        said[image, : found // 2] = labels[image, near]
        boxes[image, : found // 2] = true[image, near] + rng.normal(0, 6, (found // 2, 4))
    boxes = np.clip(boxes, 0, whole)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2])
    said[2:5] = -1  # nothing found
    said[said == 2] = 1  # nor ever a class
    scores = rng.random((images, found)).astype(np.float32)
    moved = np.concatenate([shift, shift], axis=1)[:, None]
    files = {"boxes": boxes, "true_boxes": true}
    area = (true[..., 2:] - true[..., :2]).prod(-1) * 0.7
    return files | {"labels": said, "scores": scores, "area": area}, {
        "boxes": boxes * scale[:, None, None] + moved,
        "true_boxes": true * scale[:, None, None] + moved,
        "labels": said,
        "scores": scores,
        "true_labels": labels,
        "true_crowd": crowd,
        "true_area": area * scale[:, None] ** 2,
        "placed": placed,
    }


def to_row(box):
    left, top, right, bottom = (float(x) for x in box)
    return [left, top, right - left, bottom - top]


def test_coco_numbers_are_those_of_pycocotools_for_files(tmp_path):
    """As anyone would call it, in pixels of the files, with `loadRes`."""
    pytest.importorskip("pycocotools", reason="needs the extra detection")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    files, arrays = make_arrays(np.random.default_rng(0))
    truth = {
        "info": {},
        "images": [{"id": i + 1} for i in range(12)],
        "categories": [{"id": 10 * (c + 1), "name": str(c)} for c in range(3)],
        "annotations": [
            {
                "id": int(1000 + 100 * i + j),
                "image_id": int(i) + 1,
                "category_id": 10 * (int(arrays["true_labels"][i, j]) + 1),
                "bbox": to_row(files["true_boxes"][i, j]),
                "area": float(files["area"][i, j]),
                "iscrowd": int(arrays["true_crowd"][i, j]),
            }
            for i, j in np.argwhere(arrays["true_labels"] >= 0)
        ],
    }
    found = [
        {
            "image_id": int(i) + 1,
            "category_id": 10 * (int(files["labels"][i, j]) + 1),
            "bbox": to_row(files["boxes"][i, j]),
            "score": float(files["scores"][i, j]),
        }
        for i, j in np.argwhere(files["labels"] >= 0)
    ]
    for name, values in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "truth.json")
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = measure_coco(Kept.read(arrays), 3)
    np.testing.assert_allclose([ours.numbers[n] for n in NUMBERS], evaluation.stats, atol=1e-9)
    assert 0.02 < ours.numbers["ap50"] < 0.98 and ours.numbers["ar1"] < ours.numbers["ar100"]
    assert ours.class_ap50[2] == 0  # objects, never found
    np.testing.assert_allclose(np.mean(ours.class_ap50), evaluation.stats[1], atol=1e-9)


def test_nothing_found_and_nothing_there():
    pytest.importorskip("pycocotools", reason="needs the extra detection")
    _, arrays = make_arrays(np.random.default_rng(1))
    silent = arrays | {"labels": np.full_like(arrays["labels"], -1)}
    assert measure_coco(Kept.read(silent), 3).numbers["ap"] == 0
    empty = arrays | {"true_labels": np.full_like(arrays["true_labels"], -1)}
    ours = measure_coco(Kept.read(empty), 3)
    assert ours.numbers["ap"] == -1 and np.isnan(ours.class_ap).all()
    assert np.isnan(measure_voc(Kept.read(empty), 3)).all()


def kept(found, true, *, crowd=()):
    """One image, in pixels of its file: (label, score, box) and (label, box)."""
    return Kept(
        np.array([[box for _, _, box in found]], np.float64).reshape(1, -1, 4),
        np.array([[score for _, score, _ in found]], np.float64),
        np.array([[label for label, _, _ in found]], int),
        np.array([[box for _, box in true]], np.float64).reshape(1, -1, 4),
        np.array([[label for label, _ in true]], int),
        np.array([[i in crowd for i in range(len(true))]]),
        np.ones((1, len(true))),
    )


A, B, C, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (70, 0, 80, 10)


def test_voc_by_hand():
    true = [(0, A), (0, B), (0, C)]
    # Right, wrong (A again), right: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    found = [(0, 0.9, A), (0, 0.8, (0, 0, 10, 9)), (0, 0.7, B)]
    points, areas = measure_voc(kept(found, true), 2)
    np.testing.assert_allclose(points, [(4 * 1 + 3 * 2 / 3) / 11, np.nan])
    np.testing.assert_allclose(areas, [(1 + 2 / 3) / 3, np.nan])
    # A difficult object, B, is neither right nor wrong to find, and is not missed.
    points, areas = measure_voc(kept(found, true, crowd=(1,)), 2)
    np.testing.assert_allclose(points, [6 / 11, np.nan])
    np.testing.assert_allclose(areas, [1 / 2, np.nan])
    # What overlaps most with a taken object is wrong, even where it would do for another.
    near, nearer = (0, 0, 10, 10), (0, 3, 10, 13)
    found = [(0, 0.9, nearer), (0, 0.8, (0, 2, 10, 12))]
    _, areas = measure_voc(kept(found, [(0, near), (0, nearer)]), 1)
    np.testing.assert_allclose(areas, [1 / 2])


def test_confusions_have_a_background():
    found = [
        (0, 0.9, A),  # right
        (0, 0.8, B),  # of class 1
        (1, 0.7, B),  # right, which is nearer to the object than the one of another class
        (1, 0.6, FAR),  # nothing there
        (0, 0.2, C),  # not sure enough
        (1, 0.9, (42, 0, 44, 4)),  # in a crowd
    ]
    true = [(0, A), (1, B), (0, C), (1, (40, 0, 60, 10)), (-1, FAR)]
    image = kept(found, true, crowd=(3,))
    counts = count_confusions(image, 2, 0.5)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    verdicts = match_objects(image, 0, 0.5)
    assert verdicts.of_found.tolist() == [0, -1, 1, -1, -2, -2]
    assert verdicts.of_true.tolist() == [0, 2, -1, -2, -2]
