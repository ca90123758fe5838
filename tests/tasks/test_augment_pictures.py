"""The picture of a policy: its samples, its rows, and what cannot be drawn."""

import cv2
import matplotlib.image
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.tasks.augment_pictures import draw_policy, sample_policy
from flaxcnn.tasks.figures import save_figure

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 10, 14, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    """A photograph of one colour, 60 wide and 40 high."""
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((40, 60, 3), (30, 200, 10), np.uint8))
    return str(tmp_path / "photo.png")


def read(path) -> np.ndarray:
    return (255 * matplotlib.image.imread(path)[..., :3]).round().astype(int)


def patches(picture: np.ndarray, color) -> int:
    """How many separate rectangles have exactly this colour."""
    mask = (picture == color).all(-1).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    return int((stats[1:count, cv2.CC_STAT_AREA] > 1000).sum())


def test_images_are_taken_in_turn_and_each_sample_is_another():
    samples = sample_policy([("crop", 3)], IMAGES, 6)
    for step, sample in enumerate(samples):
        padded = np.pad(IMAGES[step % 2], ((3, 3), (3, 3), (0, 0)), "reflect") / 255
        parts = [padded[y : y + 10, x : x + 14] for y in range(7) for x in range(7)]
        assert min(np.abs(sample - part).max() for part in parts) < 1e-5
    assert len(np.unique(np.stack(samples[::2]), axis=0)) == 3
    again = sample_policy([("crop", 3)], IMAGES, 6)
    np.testing.assert_array_equal(samples, again)
    assert not np.array_equal(samples, sample_policy([("crop", 3)], IMAGES, 6, seed=1))


@pytest.mark.parametrize("count", [1, 2])
def test_an_alternating_flip_shows_both_sides_of_each_image(count):
    samples = sample_policy([("alternating_flip",)], IMAGES[:count], 2 * count)
    for first, second in zip(samples[:count], samples[count:], strict=True):
        np.testing.assert_array_equal(first, second[:, ::-1])


def test_mixing_takes_the_next_image_or_the_mirror_image():
    for images, other in ((IMAGES, IMAGES[1]), (IMAGES[:1], IMAGES[0, :, ::-1])):
        sample = sample_policy([("mixup", 5.0)], images, 1)[0]
        own, other = IMAGES[0] / 255, other / 255
        difference = own - other
        share = ((sample - other) * difference).sum() / (difference**2).sum()
        assert 0.05 < share < 0.95
        np.testing.assert_allclose(sample, share * own + (1 - share) * other, atol=1e-5)


def test_rows_are_the_original_each_entry_and_twice_the_whole(file, tmp_path):
    policy = (("flip",), ("invert", 1.0))
    save_figure(draw_policy(policy, [file], samples=3), tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    plain, inverted = [10, 200, 30], [245, 55, 225]
    assert patches(picture, plain) == 1 + 3  # the original, and flips of it
    assert patches(picture, inverted) == 3 + 6
    # One entry needs no rows for the whole.
    save_figure(draw_policy(policy[1:], [file, file], samples=3), tmp_path / "b.png")
    assert patches(read(tmp_path / "b.png"), plain) == 2
    assert patches(read(tmp_path / "b.png"), inverted) == 3
    assert read(tmp_path / "b.png").shape[0] < 0.6 * picture.shape[0]


@pytest.mark.parametrize("resized", [(10, 40), (40, 10)])
@pytest.mark.parametrize(("size", "aspect"), [((), 40 / 60), ((30, 20), 30 / 20)])
def test_images_keep_their_proportions_within_their_cells(file, tmp_path, size, aspect, resized):
    save_figure(
        draw_policy([("resize", *resized)], [file], image_size=size, samples=1), tmp_path / "a.png"
    )
    mask = (read(tmp_path / "a.png") == [10, 200, 30]).all(-1).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    sides = [(s[cv2.CC_STAT_TOP], s[cv2.CC_STAT_HEIGHT], s[cv2.CC_STAT_WIDTH]) for s in stats[1:]]
    assert count == 3
    (_, *original), (_, *changed) = sorted(sides)
    assert original[0] / original[1] == pytest.approx(aspect, rel=0.05)
    assert changed[0] / changed[1] == pytest.approx(resized[0] / resized[1], rel=0.05)
    assert changed[0] <= original[0] + 1 and changed[1] <= original[1] + 1


def test_grey_images_are_drawn(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 0x55, np.uint8))
    save_figure(
        draw_policy([("flip",)], [str(tmp_path / "grey.png")], samples=2), tmp_path / "a.png"
    )
    assert patches(read(tmp_path / "a.png"), [0x55] * 3) == 3


def test_what_cannot_be_drawn_is_told_in_one_line(file, tmp_path):
    def refused(line, policy=(("flip",),), files=(file,), **kwargs):
        with pytest.raises(UserError) as caught:
            draw_policy(policy, files, **kwargs)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)

    refused("there is nothing to draw: the config has no data.augment", policy=())
    refused(
        "data.augment[1] ('hue', 0.1): the images are grey", (("flip",), ("hue", 0.1)), channels=1
    )
    refused("--samples is 0", samples=0)
    refused("--samples is 1, and there are 2 images", files=(file, file), samples=1)
    refused(f"{tmp_path}/nothing.jpg", files=(f"{tmp_path}/nothing.jpg",))
