"""What the random operations and policies do, and that only key, step and position decide it."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxcnn.data import geometry
from flaxcnn.data.augment import for_targets, make_augment, operations, policies
from flaxcnn.data.augment.kinds import Warp
from flaxcnn.data.augment.mixing import Mixed
from flaxcnn.data.augment.pipeline import make_transform, read_policy
from flaxcnn.errors import UserError
from flaxcnn.tasks import losses

REFERENCE = Path(__file__).parents[1] / "reference"
SHAPE = (16, 20, 3)


def make_batch(count=32, shape=SHAPE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, rng.integers(0, 10, count).astype(np.int32)


def many(operation, image, count=400):
    """The operation's results on one image, for `count` keys."""
    keys = jax.random.split(jax.random.key(1), count)
    apply = make_transform([operation])
    return np.asarray(jax.jit(jax.vmap(lambda key: apply(key, jnp.asarray(image), ())[0]))(keys))


def test_an_example_depends_on_key_step_and_position_only():
    images, labels = make_batch()
    augment = jax.jit(make_augment([("rotate", 30), ("random_erasing", 1.0)], SHAPE, 2))
    base, _ = augment(jax.random.key(0), 4, images, labels)
    for other in ((jax.random.key(1), 4), (jax.random.key(0), 5)):
        assert not np.isclose(augment(*other, images, labels)[0], base).all((1, 2, 3)).any()
    neighbours = images.copy()
    neighbours[1:] = 0
    np.testing.assert_array_equal(augment(jax.random.key(0), 4, neighbours, labels)[0][0], base[0])
    same = np.repeat(images[:1], 32, axis=0)
    different = augment(jax.random.key(0), 4, same, labels)[0]
    assert len(np.unique(np.asarray(different).reshape(32, -1), axis=0)) == 32


def test_neighbouring_warps_are_one_sampling():
    image = make_batch(1)[0][0].astype(np.float32) / 255
    chain = read_policy([("rotate", 30), ("flip", 1.0), ("zoom", 1.5, 2), ("shear", 10)])
    key = jax.random.key(2)
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    drawn = [warp.draw(k, SHAPE[:2]) for warp, k in zip(chain, keys, strict=True)]
    matrix = np.linalg.multi_dot([np.asarray(m) for m in reversed(drawn)])
    expected = geometry.warp_image(image, jnp.asarray(matrix))
    np.testing.assert_allclose(make_transform(chain)(key, image, ())[0], expected, atol=1e-4)


def test_crop_is_pad_and_cut():
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), "reflect")
    parts = [padded[y : y + 16, x : x + 20] for y in range(5) for x in range(5)]
    cut = many(operations.crop(2), image)
    counts = [(cut == part).all((1, 2, 3)).sum() for part in parts]
    assert sum(counts) == 400 and min(counts) > 2  # all 25 places, and nothing else


def test_a_flip_happens_with_its_probability():
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    for operation, flipped in [
        (operations.flip(0.25), image[:, ::-1]),
        (operations.vertical_flip(0.25), image[::-1]),
    ]:
        done = many(operation, image)
        share = (done == flipped).all((1, 2, 3)).mean()
        assert abs(share - 0.25) < 0.08  # 3.7 standard deviations
        assert ((done == flipped) | (done == image)).all()


def test_alternating_flip_shows_both_sides_in_two_epochs():
    images, labels = make_batch(64)
    augment = jax.jit(make_augment([("alternating_flip",)], SHAPE, steps_per_epoch=10))
    epochs = [np.asarray(augment(jax.random.key(0), s, images, labels)[0]) for s in (9, 10, 29)]
    assert (epochs[0] == epochs[2]).all()
    np.testing.assert_array_equal(epochs[1], epochs[0][:, :, ::-1])
    first = np.isclose(epochs[0], images / 255).all((1, 2, 3)).mean()
    assert 0.3 < first < 0.7
    # Wherever an image stands in the batch.
    order = np.random.default_rng(0).permutation(64)
    moved, _ = augment(jax.random.key(0), 3, images[order], labels)
    np.testing.assert_array_equal(moved, epochs[0][order])


def test_random_resized_crop_keeps_area_and_shape_in_range():
    warp = operations.random_resized_crop((0.2, 0.6), (0.5, 2.0))
    assert isinstance(warp, Warp)
    keys = jax.random.split(jax.random.key(0), 300)
    matrices = np.asarray(jax.vmap(lambda key: warp.draw(key, (40, 60)))(keys))
    across, down = 1 / matrices[:, 0, 0], 1 / matrices[:, 1, 1]
    inner = (across < 0.999) & (down < 0.999)  # the others were cut to the image's side
    assert 0.2 <= (across * down)[inner].min() < 0.23 and 0.55 < (across * down).max() <= 0.6001
    assert 0.499 < (across / down)[inner].min() and (across / down)[inner].max() < 2.001
    # The part lies within the image: its corners come from inside.
    for matrix in matrices:
        corners = np.linalg.inv(matrix) @ [[0, 60], [0, 40], [1, 1]]
        assert corners.min() > -1e-3 and (corners.max(1) < [60.001, 40.001, 1.001]).all()


def test_erasing_takes_the_share_it_says_and_leaves_the_rest():
    image = np.full((40, 40, 3), 0.25, np.float32)
    erased = many(operations.random_erasing(0.5, (0.1, 0.3), (0.5, 2.0), fill=1.0), image)
    share = (erased == 1.0).all(-1).mean((1, 2))
    assert ((erased == 1.0) | (erased == 0.25)).all()
    assert 0.4 < (share > 0).mean() < 0.6
    assert 0.08 < share[share > 0].min() < 0.13 and 0.27 < share.max() < 0.33
    for mask in (erased == 1.0)[share > 0][:20, ..., 0]:  # a rectangle
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()
    noise = many(operations.random_erasing(1.0), image)
    values = noise[noise != 0.25]
    assert values.std() == pytest.approx(np.sqrt(1 / 12), abs=0.01)  # uniform


def test_cutout_is_a_square_cut_at_the_borders():
    done = many(operations.cutout(9, fill=0.0), np.ones((20, 24, 1), np.float32))
    holes = done[..., 0] == 0
    sides = np.stack([holes.any(2).sum(1), holes.any(1).sum(1)])
    assert sides.max() == 9 and sides.min() == 5  # a centre on the border leaves 5 of 9
    assert (holes.sum((1, 2)) == sides.prod(0)).all()


def test_noise_has_its_deviation():
    done = many(operations.gaussian_noise(0.1), np.full((16, 16, 1), 0.5, np.float32))
    assert (done - 0.5).std() == pytest.approx(0.1, rel=0.02)


PILLOW = {
    "identity": lambda image, m: image,
    "shear_x": lambda image, m: transform(image, (1, m * 0.3, 0, 0, 1, 0)),
    "shear_y": lambda image, m: transform(image, (1, 0, 0, m * 0.3, 1, 0)),
    "translate_x": lambda image, m: transform(image, (1, 0, -int(m * 150 / 331 * 32), 0, 1, 0)),
    "translate_y": lambda image, m: transform(image, (1, 0, 0, 0, 1, -int(m * 150 / 331 * 24))),
    "rotate": lambda image, m: image.rotate(m * 30, fillcolor=(128, 128, 128)),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * m)),
    "solarize": lambda image, m: ImageOps.solarize(image, 255 - 255 * m),
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
}


def transform(image, back):
    return image.transform(image.size, Image.Transform.AFFINE, back, fillcolor=(128, 128, 128))


@pytest.mark.parametrize("level", [0.0, 1 / 3, 1.0, -2 / 3])
def test_the_policies_operations_are_pillows(level):
    """As AutoAugment's published code has them: Pillow calls, in the order of NAMES."""
    pixels = np.random.default_rng(0).integers(30, 220, (24, 32, 3), dtype=np.uint8)
    apply = jax.jit(
        lambda image, number, level: policies.apply_operation(
            image, number, level, policies.Strengths(), 128 / 255
        )
    )
    assert set(PILLOW) == set(policies.NAMES)
    for number, name in enumerate(policies.NAMES):
        if level < 0 and name in ("posterize", "solarize"):
            continue  # they have no sign
        expected = np.float32(PILLOW[name](Image.fromarray(pixels), level))
        ours = np.asarray(apply(np.float32(pixels) / 255, number, level)) * 255
        far = np.abs(ours - expected).max(-1) > 1.8
        assert far.mean() < (0.06 if name in policies.NAMES[:6] else 1e-9), name  # ties


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_autoaugments_tables_are_torchvisions(dataset):
    golden = json.loads((REFERENCE / "autoaugment.json").read_text())[dataset]
    expected = [
        [(re.sub("([XY])$", r"_\1", name).lower(), p, level or 0) for name, p, level in pair]
        for pair in golden
    ]
    assert policies.read_table(policies._TABLES[dataset]) == expected


@pytest.mark.parametrize(
    "make", [policies.randaugment, policies.trivialaugment, policies.autoaugment]
)
def test_a_policy_does_many_things_to_one_image(make):
    image = np.random.default_rng(0).integers(30, 220, (12, 12, 3)).astype(np.float32) / 255
    results = np.round(many(make(), image, 200) * 255)
    assert len(np.unique(results.reshape(200, -1), axis=0)) > 25


def test_mixup_is_the_average_with_the_next_example():
    images, labels = make_batch()
    mixed, both = jax.jit(make_augment([("mixup", 1.0)], SHAPE, 2))(
        jax.random.key(0), 0, images, labels
    )
    x, share = np.float64(images) / 255, np.float64(both.share)[:, None, None, None]
    np.testing.assert_allclose(mixed, share * x + (1 - share) * np.roll(x, -1, 0), atol=1e-6)
    np.testing.assert_array_equal(both.first, labels)
    np.testing.assert_array_equal(both.second, np.roll(labels, -1))
    assert share.min() < 0.2 and share.max() > 0.8  # Beta(1, 1) is uniform


def test_mixup_or_cutmix_is_one_of_them_for_each_pair():
    images = np.zeros((64, *SHAPE), np.uint8)
    images[::2] = 255  # so that white and black alternate
    augment = jax.jit(make_augment([("mixup_or_cutmix", 5.0, 1.0)], SHAPE, 2))
    mixed, both = augment(jax.random.key(0), 0, images, np.arange(64))
    white = np.where(np.arange(64) % 2 == 0, both.share, 1 - both.share)
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), white, atol=1e-5)
    averaged = np.asarray(mixed.std((1, 2, 3)) < 1e-6) & (white > 0.01) & (white < 0.99)
    cut = np.asarray(((mixed == 0) | (mixed == 1)).all((1, 2, 3)))
    assert (averaged ^ cut).all() and 16 < averaged.sum() < 48


def test_cutmix_shares_labels_by_pixels():
    images, labels = make_batch(64)
    mixed, both = jax.jit(make_augment([("cutmix",)], SHAPE, 2))(
        jax.random.key(0), 0, images, labels
    )
    x = np.float32(images) / np.float32(255)
    own, others = (np.abs(mixed - y).max(-1) < 1e-6 for y in (x, np.roll(x, -1, 0)))
    assert (own | others).all()
    np.testing.assert_allclose(both.share, own.mean((1, 2)), atol=0.01)
    assert both.share.min() < 0.3 and both.share.max() > 0.9
    for mask in ~own:
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "focal", "mse"])
def test_a_mixed_loss_has_the_gradient_of_the_soft_label(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    mixed = Mixed(jnp.arange(6) % 4, jnp.asarray([1, 1, 0, 2, 3, 3]), jnp.linspace(0, 1, 6))
    loss = losses.make_loss(name=name)
    soft = (
        np.eye(4)[mixed.first] * mixed.share[:, None]
        + np.eye(4)[mixed.second] * (1 - mixed.share[:, None])
    ).astype(np.float32)

    def of_soft_labels(x):
        p = jax.nn.softmax(x)
        return {
            "cross_entropy": lambda: optax.softmax_cross_entropy(x, soft),
            "binary_cross_entropy": lambda: optax.sigmoid_binary_cross_entropy(x, soft).mean(-1),
            "focal": lambda: -(soft * (1 - p) ** 2 * jnp.log(p)).sum(-1),
            "mse": lambda: jnp.square(p - soft).mean(-1),
        }[name]().sum()

    ours = jax.grad(lambda x: for_targets(lambda labels: loss(x, labels), mixed).sum())(logits)
    np.testing.assert_allclose(ours, jax.grad(of_soft_labels)(logits), atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ([("flop",)], "data.augment[0] ('flop',): there is no flop; there are affine, "),
        ([("flip",), "flip"], "data.augment[1] 'flip': an entry is a name and its settings"),
        ([("rotate",)], "data.augment[0] ('rotate',): the settings of rotate are: degrees, fill"),
        ([("rotate", "x")], "data.augment[0] ('rotate', 'x'): degrees must be a number in 0..180"),
        ([("rotate", 10, "mirror")], "data.augment[0] ('rotate', 10, 'mirror'): fill must be "),
        ([("flip", 2)], "data.augment[0] ('flip', 2): p must be a number in 0..1, got 2"),
        ([("hue", 0.1, {"p": 7})], "data.augment[0] ('hue', 0.1, {'p': 7}): p must be a number"),
        ([("crop", 1.5)], "data.augment[0] ('crop', 1.5): padding must be a whole number in 0.."),
        ([("zoom", 2, 1)], "data.augment[0] ('zoom', 2, 1): high must be a number in 2..100"),
        ([("cutmix",), ("flip",)], "data.augment[1] ('flip',): nothing can follow cutmix"),
        ([("flip",), ("alternating_flip",)], "data.augment[1] ('alternating_flip',): can only be"),
        ([("mixup", 1, {"p": 0.5})], "data.augment[0] ('mixup', 1, {'p': 0.5}): mixup has no p"),
        ([("autoaugment", "svhn")], "data.augment[0] ('autoaugment', 'svhn'): dataset must be one"),
        ([("hue", 0.1)], "data.augment[0] ('hue', 0.1): the images are grey"),
    ],
)
def test_a_wrong_entry_is_told_in_one_line(policy, line):
    with pytest.raises(UserError) as caught:
        read_policy(policy, channels=1)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
