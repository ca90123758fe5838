"""Views against NumPy: what they show, how they combine, and that one is computed at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.data.augment import average_over, read_views, viewed_shape
from flaxcnn.errors import UserError

SHAPE = (9, 12, 3)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)


def logits_of(images):
    """A function that no view leaves as it is: pixels weighed by their place, then bent."""
    rows, columns = np.arange(images.shape[1]), np.arange(images.shape[2])
    places = np.sin(rows[:, None] * 1.3 + columns[None] ** 1.5).astype(np.float32)
    return jnp.tanh((images * places[None, :, :, None]).sum((1, 2)))


def averaged(views, images=IMAGES):
    return np.asarray(jax.jit(average_over(read_views(views, images.shape[1:]), logits_of))(images))


def moved(images, n, by):
    """The images moved down and right by `by`; NumPy's own reflection beyond the borders."""
    padded = np.pad(images, ((0, 0), (n, n), (n, n), (0, 0)), "reflect")
    return padded[:, n - by :, n - by :][:, : images.shape[1], : images.shape[2]]


def test_flip_is_the_mean_of_both_sides():
    expected = (logits_of(IMAGES) + logits_of(IMAGES[:, :, ::-1])) / 2
    np.testing.assert_allclose(averaged([("flip",)]), expected, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_a_shift_counts_a_quarter_each_way(n):
    there, back = (logits_of(moved(IMAGES, n, by)) for by in (n, -n))
    expected = logits_of(IMAGES) / 2 + there / 4 + back / 4
    np.testing.assert_allclose(averaged([("shift", n)]), expected, atol=1e-6)
    # Down and right: the first pixel is now the one that was reflected.
    shown = read_views([("shift", n)])[1].show(jnp.asarray(IMAGES))
    np.testing.assert_array_equal(shown[:, n:, n:], IMAGES[:, :-n, :-n])
    np.testing.assert_array_equal(shown[:, 0, n:], IMAGES[:, n, :-n])


def test_shift_and_flip_are_the_six_views_of_airbench():
    """As its script has them: the mean of both mirrors, of which half is the image unmoved."""

    def mirrored(images):
        return (logits_of(images) + logits_of(images[:, :, ::-1])) / 2

    translated = (mirrored(moved(IMAGES, 1, 1)) + mirrored(moved(IMAGES, 1, -1))) / 2
    expected = (mirrored(IMAGES) + translated) / 2
    views = [("shift", 1), ("flip",)]
    np.testing.assert_allclose(averaged(views), expected, atol=1e-6)
    assert len(read_views(views)) == 6
    # The other way around it is the mirror image that moves, down and right too.
    other = averaged([("flip",), ("shift", 1)])
    assert np.abs(other - expected).max() > 1e-3


def test_crops_are_the_centre_and_the_corners():
    corners = (IMAGES[:, y, x] for y in (slice(6), slice(3, 9)) for x in (slice(6), slice(6, 12)))
    parts = [IMAGES[:, 1:7, 3:9], *corners]
    expected = sum(logits_of(part) for part in parts) / 5
    np.testing.assert_allclose(averaged([("crops", 6)]), expected, atol=1e-6)
    ten = [logits_of(x) for part in parts for x in (part, part[:, :, ::-1])]
    np.testing.assert_allclose(averaged([("crops", 6), ("flip",)]), sum(ten) / 10, atol=1e-6)
    assert viewed_shape(read_views([("crops", 6)]), SHAPE) == (6, 6, 3)
    assert viewed_shape(read_views([("shift", 1), ("flip",)]), SHAPE) == SHAPE
    assert viewed_shape([], SHAPE) == SHAPE


def test_it_is_the_logits_that_are_averaged():
    """Not the probabilities: their logarithms differ."""
    mean = averaged([("flip",)])
    both = jax.nn.softmax(logits_of(IMAGES)), jax.nn.softmax(logits_of(IMAGES[:, :, ::-1]))
    assert np.abs(jax.nn.softmax(mean) - sum(both) / 2).max() > 1e-3


@pytest.mark.parametrize("views", [[("flip",)], [("shift", 1), ("flip",)], [("crops", 5)]])
def test_weights_sum_to_one(views):
    assert sum(view.weight for view in read_views(views)) == pytest.approx(1)


def test_the_network_is_compiled_once_however_many_views_there_are():
    traces = []

    def network(images):
        traces.append(images.shape)
        return logits_of(images)

    views = read_views([("crops", 6), ("shift", 1), ("flip",)])
    assert len(views) == 30
    jax.jit(average_over(views, network)).lower(IMAGES)
    assert traces == [(5, 6, 6, 3)]


def test_without_views_nothing_is_added():
    assert average_over(read_views([]), logits_of) is logits_of


@pytest.mark.parametrize(
    ("views", "line"),
    [
        ([("flop",)], "data.views[0] ('flop',): there is no flop; there are crops, flip, shift"),
        ([("flip",), "flip"], "data.views[1] 'flip': an entry is a name and its settings"),
        ([("shift",)], "data.views[0] ('shift',): the settings of shift are: pixels"),
        ([("flip", 0.5)], "data.views[0] ('flip', 0.5): the settings of flip are: none"),
        ([("shift", 0)], "data.views[0] ('shift', 0): pixels must be a whole number in 1.."),
        ([("shift", "x")], "data.views[0] ('shift', 'x'): pixels must be a whole number in 1.."),
        ([("crops", 6.0)], "data.views[0] ('crops', 6.0): size must be a whole number in 1.."),
        ([("shift", 9)], "data.views[0] ('shift', 9): 9x12 images cannot be moved by 9 pixels"),
        ([("crops", 10)], "data.views[0] ('crops', 10): 9x12 images have no 10x10 part"),
        ([("crops", 4), ("shift", 4)], "data.views[1] ('shift', 4): 4x4 images cannot be moved"),
    ],
)
def test_a_wrong_view_is_told_in_one_line(views, line):
    with pytest.raises(UserError) as caught:
        read_views(views, SHAPE)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
