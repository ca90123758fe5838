import jax
import jax.numpy as jnp
import numpy as np
from boxes_golden import GOLDEN

from flaxcnn.boxes import (
    box_iou,
    clip_boxes,
    covered_share,
    decode_boxes,
    decode_cells,
    decode_priors,
    encode_boxes,
    encode_cells,
    encode_priors,
    from_centers,
    generalized_box_iou,
    to_centers,
)
from flaxcnn.boxes.coding import BOX_WEIGHTS


def golden(name):
    return np.asarray(GOLDEN[name], np.float32)


def test_overlaps_are_those_of_torchvision():
    iou, giou = jax.jit(lambda a, b: (box_iou(a, b), generalized_box_iou(a, b)))(
        golden("a"), golden("b")
    )
    np.testing.assert_allclose(iou, GOLDEN["iou"], rtol=1e-6)
    np.testing.assert_allclose(giou, GOLDEN["giou"], rtol=1e-6, atol=1e-7)


def test_boxes_without_area_overlap_with_nothing():
    def overlap(x):
        return box_iou(x, x).sum() + generalized_box_iou(x, x).sum() + covered_share(x, x).sum()

    value, gradient = jax.jit(jax.value_and_grad(overlap))(np.zeros((1, 4), np.float32))
    assert value == 0 and (gradient == 0).all()


def test_covered_share_and_borders():
    boxes = np.asarray([[0, 0, 4, 2], [-3, 1, 5, 9]], np.float32)
    others = np.asarray([[1, 0, 2, 9]], np.float32)
    share, cut, centers, again = jax.jit(
        lambda b, o: (
            covered_share(b, o),
            clip_boxes(b, (6, 3)),
            to_centers(b),
            from_centers(to_centers(b)),
        )
    )(boxes, others)
    np.testing.assert_allclose(share, [[0.25], [0.125]])
    np.testing.assert_array_equal(cut, [[0, 0, 3, 2], [0, 1, 3, 6]])
    np.testing.assert_array_equal(centers, [[2, 1, 4, 2], [1, 5, 8, 8]])
    np.testing.assert_array_equal(again, boxes)


def test_offsets_are_those_of_torchvision():
    encoded, decoded, padding = jax.jit(
        lambda a, offsets, around: (
            encode_boxes(a, around, BOX_WEIGHTS),
            decode_boxes(offsets[None], around[None], BOX_WEIGHTS)[0],
            encode_boxes(a * 0, around),
        )
    )(golden("a"), golden("offsets"), golden("around"))
    np.testing.assert_allclose(encoded, GOLDEN["encoded"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decoded, GOLDEN["decoded"], rtol=1e-5, atol=1e-4)
    assert np.isfinite(padding).all()


# Image of 40 x 60 pixels (height, width), 2 x 3 cells of 20 pixels, a box in row 1, column 2.
SIZE, BOX = (40, 60), np.array([46, 21, 56, 39], np.float32)


def test_yolo_v1_codes_a_box_by_hand():
    boxes = np.broadcast_to(BOX, (2, 3, 1, 4))
    want = [51 / 20 - 2, 30 / 20 - 1, (10 / 60) ** 0.5, (18 / 40) ** 0.5]

    def code(b):
        values = encode_cells(b, SIZE)
        return values, decode_cells(values, SIZE)

    values, again = jax.jit(code)(boxes)
    np.testing.assert_allclose(values[1, 2, 0], want, rtol=1e-5)
    np.testing.assert_allclose(again, boxes, rtol=1e-5)


def test_yolo_v2_and_v3_code_a_box_by_hand():
    priors = np.asarray([[5, 36], [20, 9]], np.float32)
    boxes = np.broadcast_to(BOX, (2, 3, 2, 4))
    values = jax.jit(lambda b: encode_priors(b, jnp.asarray(priors), SIZE))(boxes)
    np.testing.assert_allclose(values[1, 2, 0], [0.55, 0.5, np.log(2), np.log(0.5)], rtol=1e-5)
    np.testing.assert_allclose(values[1, 2, 1], [0.55, 0.5, np.log(0.5), np.log(2)], rtol=1e-5)
    numbers = np.array(values)
    with np.errstate(invalid="ignore"):  # centres are outside of the other cells
        numbers[..., :2] = np.log(numbers[..., :2] / (1 - numbers[..., :2]))
    numbers[0, 0] = 500  # a side that would be infinite
    again = jax.jit(lambda v: decode_priors(v, jnp.asarray(priors), SIZE))(numbers)
    np.testing.assert_allclose(again[1, 2], boxes[1, 2], rtol=1e-5)
    assert np.isfinite(again[0, 0]).all()
