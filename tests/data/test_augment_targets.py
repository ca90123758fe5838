"""Policies move targets with their images: scenes in known colours, and where these are found.

A scene has three rectangles (boxes), three dots (keypoints) and the class of each pixel (mask). The
colours are corners of the RGB cube, of which none is between others: an interpolated pixel looks
like none of them. What was filled in is grey.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.data.augment import make_augment, read_policy, read_views
from flaxcnn.data.augment.kinds import Warp
from flaxcnn.data.augment.mixing import Mix, for_targets, mix_batch
from flaxcnn.data.augment.operations import OPERATIONS
from flaxcnn.data.targets import IGNORED, Boxes, Keypoints, Mask
from flaxcnn.errors import UserError

COUNT, HEIGHT, WIDTH = 24, 40, 56
COLOURS = np.array(
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)], np.float32
)
BOX, DOT = (1, 2, 3), (4, 5, 6)  # their classes
PAIRS = ((0, 1),)
KEY, STEP = jax.random.key(7), np.int32(3)


def make_scene(seed):
    """Classes [H, W], boxes [4, 4] (the last is none), points [3, 2]."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    boxes, points = np.zeros((4, 4), np.float32), np.zeros((3, 2), np.float32)
    for i in range(3):  # each in a third of the width, dots in the lower part
        left, top = 2 + 18 * i + rng.integers(0, 5), rng.integers(2, 8)
        right, bottom = left + rng.integers(6, 11), top + rng.integers(6, 12)
        classes[top:bottom, left:right] = BOX[i]
        boxes[i] = left, top, right, bottom
        x, y = 3 + 18 * i + rng.integers(0, 10), rng.integers(22, 33)
        classes[y : y + 5, x : x + 5] = DOT[i]
        points[i] = x + 2.5, y + 2.5
    return classes, boxes, points


CLASSES, BOXES, POINTS = (np.stack(x) for x in zip(*map(make_scene, range(COUNT)), strict=True))
IMAGES = (255 * COLOURS[CLASSES]).astype(np.uint8)
LABELS = np.arange(COUNT, dtype=np.int32)
TARGETS = {
    "label": LABELS,
    "boxes": Boxes(
        BOXES,
        np.tile([True, True, True, False], (COUNT, 1)),
        np.tile(np.int32([1, 2, 3, 0]), (COUNT, 1)),
    ),
    "points": Keypoints(POINTS, np.ones((COUNT, 3), bool), pairs=PAIRS),
    "mask": Mask(CLASSES),
}


def augmented(policy, step=STEP):
    augment = jax.jit(make_augment(policy, IMAGES.shape[1:], steps_per_epoch=2))
    images, targets = jax.device_get(augment(KEY, step, IMAGES, TARGETS))
    np.testing.assert_array_equal(targets["label"], LABELS)
    return images, targets


def recognise(image):
    """The class of each pixel by its colour, IGNORED for the fill, 254 for what is between."""
    known = [np.abs(image - colour).max(-1) < 0.1 for colour in COLOURS]
    fill = np.abs(image - 0.5).max(-1) < 0.02
    return np.select([*known, fill], [*range(len(COLOURS)), IGNORED], 254)


def find_extent(where):
    """(left, top, right, bottom) of the pixels."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def find_centres(classes):
    """The mean (x, y) of each class's pixels, where it has enough of them."""
    places = {c: np.argwhere(classes == c)[:, ::-1] + 0.5 for c in (*BOX, *DOT)}
    return {c: place.mean(0) for c, place in places.items() if len(place) > 5}


def is_mirrored(before, after):
    """Whether centres moved as in a mirror: by the affine map that fits them best."""
    common = sorted(before.keys() & after.keys())
    known = np.array([[*before[c], 1] for c in common])
    fitted = np.linalg.lstsq(known, np.array([after[c] for c in common]), rcond=None)[0]
    assert np.linalg.cond(known) < 1e3
    return np.linalg.det(fitted[:2]) < 0


def check_boxes(boxes, classes, upright=False):
    """Each is around its class; closely, unless it was cut at a border and is not upright."""
    height, width = classes.shape
    assert not boxes.valid[3] and (boxes.boxes[~boxes.valid] == 0).all()
    for box, valid, label in zip(boxes.boxes, boxes.valid, BOX, strict=False):
        seen = classes == label
        if seen.sum() < 8:  # a sliver may have no pixel of its own colour
            continue
        assert valid
        found = find_extent(seen)
        assert (box[:2] < found[:2] + 1.1).all() and (box[2:] > found[2:] - 1.1).all()
        if upright or ((box > 0).all() and (box < [width, height, width, height]).all()):
            np.testing.assert_allclose(box, found, atol=2)


def check_points(points, centres, mirrored, size):
    """Each is at its dot, or, in a mirror, at that of its partner; unless there is none."""
    height, width = size
    for name, (point, visible) in enumerate(zip(points.points, points.visible, strict=True)):
        dot = centres.get(DOT[(1, 0, 2)[name] if mirrored else name])
        if dot is None:
            assert not visible or min(point) < 3 or (point > [width - 3, height - 3]).any()
        elif (dot > 4).all() and (dot < [width - 4, height - 4]).all():  # whole
            assert visible
            np.testing.assert_allclose(point, dot, atol=0.7)


GEOMETRY = [  # policies, and whether what they make stays upright
    ((("alternating_flip",), ("vertical_flip",), ("crop", 5, 0.5)), True),
    ((("resize", 52, 60), ("flip",), ("random_resized_crop", (0.6, 1.0))), True),
    ((("flip",), ("affine", 30, 0.2, (0.9, 1.4), 10, 0.5)), False),
    ((("crop", 4, 0.5), ("perspective", 0.3, 1.0, "edge")), False),  # sampled twice
    (
        (("zoom", 0.8, 1.2, 0.5), ("shear", 9, 0.5), ("translate", 0.1, 0.5), ("rotate", 20, 0.5)),
        False,
    ),
]
EXAMPLES = {  # settings of operations that need some
    **{entry[0]: entry for policy, _ in GEOMETRY for entry in policy},
    "elastic": ("elastic", 2, 8),
    "posterize": ("posterize", 3),
    "solarize": ("solarize", 0.5),
    "gaussian_blur": ("gaussian_blur", 0.1, 1.0),
    "cutout": ("cutout", 8),
}


def test_every_operation_that_moves_pixels_is_tried_here():
    tried = {entry[0] for policy, _ in GEOMETRY for entry in policy}
    for name in OPERATIONS:
        entry = EXAMPLES.get(name) or next(e for e in ((name,), (name, 0.1)) if makes(e))
        (made,) = read_policy([entry])
        if isinstance(made, Warp):
            moves = True
        elif made.moves is None:  # refused, below
            moves = False
        else:
            moves = bool(list(made.moves(KEY, (HEIGHT, WIDTH))))
        assert (name in tried) == moves, name


def makes(entry):
    try:
        return bool(read_policy([entry]))
    except UserError:
        return False


@pytest.mark.parametrize(("policy", "upright"), GEOMETRY)
def test_targets_are_where_their_colours_are(policy, upright):
    images, targets = augmented(policy)
    moved = mirrored = 0
    for i, image in enumerate(images):
        boxes, points, mask = jax.tree.map(
            lambda x, i=i: x[i], (targets["boxes"], targets["points"], targets["mask"].classes)
        )
        assert mask.shape == image.shape[:2]
        seen = recognise(image)
        if policy[-1][-1] == "edge":  # what lies beyond the borders has the edge's colour
            seen[mask == IGNORED] = IGNORED
        sure = seen != 254
        assert sure.mean() > 0.6 and (mask == seen)[sure].mean() > 0.98
        check_boxes(boxes, seen, upright)
        centres = find_centres(seen)
        mirror = is_mirrored(find_centres(CLASSES[i]), centres)
        check_points(points, centres, mirror, mask.shape)
        moved += np.abs(points.points - POINTS[i]).max() > 2
        mirrored += mirror
    assert moved > COUNT / 2
    if any("flip" in entry[0] for entry in policy):
        assert COUNT / 5 < mirrored < COUNT * 4 / 5


@pytest.mark.parametrize(
    "policy",
    [
        (("randaugment", 2, 20, {"p": 0.9}),),
        pytest.param((("trivialaugment",),), marks=pytest.mark.zoo),
    ],
)
def test_policies_of_chance_move_targets(policy):
    """Their colours change, but pixels of one class remain alike, and those of others differ."""
    images, targets = augmented(policy)
    moved = told_apart = 0
    for i, image in enumerate(images):
        mask = targets["mask"].classes[i]
        colours = set()
        for label in range(len(COLOURS)):
            inner = cv2.erode(np.uint8(mask == label), np.ones((3, 3)), borderValue=0) > 0
            if inner.any():  # sharpness changes the pixels at an edge
                assert image[inner].std(0).max() < 1e-3
                colours.add(tuple(np.round(image[inner].mean(0), 1)))
        told_apart += len(colours) > 3
        check_boxes(jax.tree.map(lambda x, i=i: x[i], targets["boxes"]), mask)
        points = targets["points"]
        for point, visible, label in zip(points.points[i], points.visible[i], DOT, strict=True):
            if visible:
                x, y = np.minimum(point, (WIDTH - 1, HEIGHT - 1)).astype(int)
                assert (mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] == label).any()
        moved += (mask != CLASSES[i]).mean() > 0.05
    assert moved > COUNT / 4 and told_apart > COUNT / 2


def test_targets_move_once_per_sampling():
    """What one layer takes out of the image, and fills, no later one brings back."""
    (change,) = read_policy([("randaugment", 3)])
    matrices = jax.eval_shape(lambda key: list(change.moves(key, (HEIGHT, WIDTH))), KEY)
    assert [matrix.shape for matrix in matrices] == [(3, 3)] * 3


def test_targets_change_nothing_of_their_images():
    augment = jax.jit(make_augment([("alternating_flip",), ("rotate", 30)], IMAGES.shape[1:], 2))
    alone, labels = augment(KEY, STEP, IMAGES, LABELS)
    images, _ = augment(KEY, STEP, IMAGES, TARGETS["points"])
    np.testing.assert_allclose(images, alone, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (("elastic", 2, 8), "('elastic', 2, 8): cannot take boxes, keypoints or masks along"),
        (("mixup", 0.2), "('mixup', 0.2): cannot take boxes, keypoints or masks along"),
        (("cutmix",), "('cutmix',): cannot take boxes, keypoints or masks along"),
        (("elastic", 2, 8, {"p": 0.5}), "('elastic', 2, 8, {'p': 0.5}): cannot take boxes, "),
    ],
)
def test_what_no_matrix_says_is_refused_in_one_line(entry, line):
    policy = [("flip",), entry]
    assert len(read_policy(policy)) == 2
    augment = make_augment(policy, IMAGES.shape[1:], 2)
    for refused in (
        lambda: read_policy(policy, places=True),
        lambda: jax.eval_shape(augment, KEY, STEP, IMAGES, TARGETS),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        assert str(caught.value).startswith(f"data.augment[1] {line}")
        assert "\n" not in str(caught.value)


def test_views_and_classes_are_for_labels():
    with pytest.raises(UserError, match="^data.views: what is found in several views"):
        read_views([("flip",)], places=True)
    assert read_views([], places=True) == []
    augment = make_augment([("flip",)], IMAGES.shape[1:], 2, classes=[3])
    for targets in (TARGETS, {"label": LABELS}, np.zeros((COUNT, 2), np.float32)):
        with pytest.raises(UserError, match="^data.augment_classes is for targets that are one"):
            jax.eval_shape(augment, KEY, STEP, IMAGES, targets)


def test_any_pytree_of_labels_is_mixed_with_the_next():
    mix = Mix(lambda key, image, other: (other, image[0, 0, 0]))
    images = np.linspace(0, 1, 4, dtype=np.float32)[:, None, None, None] + np.zeros((2, 2, 3))
    targets = {"label": jnp.arange(4), "numbers": jnp.arange(8.0).reshape(4, 2)}
    images, mixed = mix_batch(mix, jax.random.split(KEY, 4), jnp.float32(images), targets)
    np.testing.assert_allclose(images[:, 0, 0, 0], [1 / 3, 2 / 3, 1, 0])
    np.testing.assert_array_equal(mixed.second["label"], [1, 2, 3, 0])
    np.testing.assert_array_equal(mixed.second["numbers"], [[2, 3], [4, 5], [6, 7], [0, 1]])
    averages = for_targets(lambda t: {"twice": 2 * t["numbers"], "label": t["label"]}, mixed)
    share = np.linspace(0, 1, 4)
    expected = [s * i + (1 - s) * ((i + 1) % 4) for i, s in enumerate(share)]
    np.testing.assert_allclose(averages["label"], expected, atol=1e-6)
    np.testing.assert_allclose(averages["twice"][:, 0] / 4, expected, atol=1e-6)
    assert for_targets(lambda t: t["label"], targets) is targets["label"]
