"""Policies that change the size, and those for some classes only."""

import jax
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.augment import augmented_shape, make_augment, read_policy
from flaxcnn.errors import UserError

SHAPE = (16, 20, 3)
COUNT = 32
KEY, STEP = jax.random.key(3), np.int32(5)
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
LABELS = (np.arange(COUNT) * 7 % 10).astype(np.int32)


def augmented(policy, **kwargs):
    return jax.jit(make_augment(policy, SHAPE, 2, **kwargs))(KEY, STEP, IMAGES, LABELS)


def test_only_the_images_of_some_classes_are_changed_and_as_they_would_be_among_all():
    policy = [("rotate", 30), ("brightness", 0.5), ("random_erasing", 0.7)]
    images, labels = augmented(policy, classes=[3, 8])
    np.testing.assert_array_equal(labels, LABELS)
    chosen = np.isin(LABELS, [3, 8])
    assert 0 < chosen.sum() < COUNT
    np.testing.assert_allclose(images[~chosen], IMAGES[~chosen] / 255, atol=1e-7)
    np.testing.assert_array_equal(images[chosen], augmented(policy)[0][chosen])
    changed = np.abs(images - IMAGES / 255).max((1, 2, 3)) > 0.1
    np.testing.assert_array_equal(changed, chosen)


def test_what_follows_resize_sees_the_new_size():
    policy = [("resize", 12, 10), ("crop", 2), ("cutmix",)]
    assert augmented(policy)[0].shape == (COUNT, 12, 10, 3)
    assert augmented_shape(policy, SHAPE) == (12, 10, 3)
    assert augmented_shape([], SHAPE) == augmented_shape([("crop", 2)], SHAPE) == SHAPE
    # What is cut out are 12x10 of the smaller image, reflected at its borders.
    for image, pixels in zip(augmented(policy[:2])[0][:6], IMAGES, strict=False):
        channels = [Image.fromarray(np.float32(pixels[..., c]) / 255) for c in range(3)]
        small = np.stack([c.resize((10, 12), Image.Resampling.BILINEAR) for c in channels], -1)
        padded = np.pad(small, ((2, 2), (2, 2), (0, 0)), "reflect")
        parts = [padded[y : y + 12, x : x + 10] for y in range(5) for x in range(5)]
        assert min(np.abs(image - part).max() for part in parts) < 1e-5


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ([("flip",), ("mixup", 0.2)], "data.augment[1] ('mixup', 0.2): cannot be for data.augment"),
        ([("cutmix",)], "data.augment[0] ('cutmix',): cannot be for data.augment_classes only"),
        ([("alternating_flip",)], "data.augment[0] ('alternating_flip',): cannot be for data.aug"),
        ([("resize", 8, 8)], "data.augment[0] ('resize', 8, 8): cannot be for data.augment_clas"),
        ([("resize", 8, 8, {"p": 0.5})], "data.augment[0] ('resize', 8, 8, {'p': 0.5}): resize h"),
        ([("resize", 0, 8)], "data.augment[0] ('resize', 0, 8): height must be a whole number in "),
    ],
)
def test_what_concerns_every_image_cannot_be_for_some(policy, line):
    with pytest.raises(UserError) as caught:
        read_policy(policy, by_class=True)
    assert str(caught.value).startswith(line)
