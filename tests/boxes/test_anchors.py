import numpy as np
import pytest
from boxes_golden import GOLDEN

from flaxcnn.boxes import fit_priors, make_anchors, make_default_boxes, ssd_scales
from flaxcnn.boxes.anchors import YOLO_V2_VOC


def test_rpn_anchors_are_those_of_torchvision():
    anchors = make_anchors((96, 80), [(12, 10), (5, 3)], [(32,), (64, 100)])
    np.testing.assert_array_equal(np.concatenate(anchors), GOLDEN["anchors"]["rpn"])


def test_default_boxes_are_those_of_torchvision():
    boxes = make_default_boxes((300, 300))
    assert len(boxes) == GOLDEN["anchors"]["ssd300"]["count"] == 8732
    np.testing.assert_allclose(boxes[::97], GOLDEN["anchors"]["ssd300"]["rows"], atol=1e-4)
    even = make_default_boxes(
        (96, 80), [(3, 2), (1, 2)], scales=ssd_scales(2), ratios=((2,), (2, 3)), strides=None
    )
    np.testing.assert_allclose(even, GOLDEN["anchors"]["even"], atol=1e-4)


def test_scales_are_the_papers_equation_4():
    np.testing.assert_allclose(ssd_scales(6), [0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1])


def test_priors_of_yolo_are_in_pixels():
    np.testing.assert_allclose(YOLO_V2_VOC[0], (1.3221 * 32, 1.73145 * 32))


def test_priors_are_found_where_the_boxes_are():
    rng = np.random.default_rng(0)
    true = np.array([[10, 12], [60, 20], [30, 90]])
    sides = np.concatenate([t * rng.uniform(0.9, 1.1, (40, 2)) for t in true])
    priors, overlap = fit_priors(rng.permutation(sides), 3)
    np.testing.assert_allclose(priors, true, rtol=0.05)
    shared = np.minimum(sides[:, None], priors).prod(-1)
    iou = shared / (sides.prod(-1)[:, None] + priors.prod(-1) - shared)
    np.testing.assert_allclose(overlap, iou.max(1).mean(), rtol=1e-6)
    # Each prior is the mean of the boxes that it is the best of.
    means = [sides[iou.argmax(1) == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(priors, means, rtol=1e-6)


def test_too_few_boxes_for_priors():
    with pytest.raises(ValueError, match="3 priors need as many different boxes"):
        fit_priors(np.ones((9, 2)), 3)
