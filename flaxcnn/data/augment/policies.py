"""Learned and random policies: AutoAugment, RandAugment, TrivialAugment.

All three choose operations by number and run them on one image. Which operation it is only becomes
known on the device, so the geometric ones share one warp, and of the others each is computed and
one is kept.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data import geometry
from flaxcnn.data.augment import color, filters
from flaxcnn.data.augment.kinds import Change
from flaxcnn.data.augment.settings import check_fill, check_number
from flaxcnn.data.geometry import Array, Fill, Size
from flaxcnn.data.rounding import product
from flaxcnn.errors import UserError

# By number. The first six move pixels; those up to `sharpness` have a sign.
NAMES = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "invert",
)
_NUMBER = {name: number for number, name in enumerate(NAMES)}
_LAST_SIGNED = _NUMBER["sharpness"]


@dataclasses.dataclass(frozen=True)
class Strengths:
    """What an operation does at level 1; at level 0 it does nothing or, unsigned, the least."""

    shear: float = 0.3
    translate: float = 150 / 331  # share of the image's side
    translate_pixels: float = 0.0  # instead of the share, where it is not 0
    rotate: float = 30.0
    enhance: float = 0.9  # how far the factor is from 1
    bits: int = 4  # dropped by posterize


_USUAL = Strengths()
_WIDE = Strengths(0.99, translate_pixels=32, rotate=135, enhance=0.99, bits=6)


def operation_matrix(number: Array, level: Array, size: Size, strengths: Strengths) -> Array:
    """How operation `number` at `level` moves what is in an image of `size`: see below."""
    height, width = size

    def amount(name: str, most: float) -> Array:
        return jnp.where(number == _NUMBER[name], level * most, 0.0)

    across, down = strengths.translate * width, strengths.translate * height
    if strengths.translate_pixels:
        across = down = strengths.translate_pixels
    # Shears keep the first row or column in place. At most one of these is not the identity; the
    # papers' amounts say where a pixel is taken from, so the picture moves the other way.
    slant = geometry.shearing(
        -amount("shear_x", strengths.shear), -amount("shear_y", strengths.shear)
    )
    move = geometry.translation(
        jnp.trunc(amount("translate_x", across)), jnp.trunc(amount("translate_y", down))
    )
    turn = geometry.rotation(amount("rotate", strengths.rotate))
    return geometry.compose(slant, move, geometry.centered(turn, size))


def apply_operation(
    image: Array, number: Array, level: Array, strengths: Strengths, fill: Fill
) -> Array:
    """Operation `number` of NAMES at `level`, in -1..1 if it has a sign, else in 0..1.

    Translations are by whole pixels and warps take the nearest pixel, as in the policies' papers.
    """
    matrix = operation_matrix(number, level, (image.shape[0], image.shape[1]), strengths)
    image = geometry.warp_image(image, matrix, nearest=True, fill=fill)
    factor = 1 + product(level, strengths.enhance)
    bits = 8 - jnp.round(jnp.abs(level) * strengths.bits).astype(jnp.int32)
    return jax.lax.switch(
        jnp.maximum(number - _NUMBER["rotate"], 0),
        (
            lambda x: x,
            lambda x: color.brightness(x, factor),
            lambda x: color.saturation(x, factor),
            lambda x: color.contrast(x, factor),
            lambda x: filters.sharpness(x, factor),
            lambda x: color.posterize(x, bits),
            lambda x: color.solarize(x, 1 - level),
            color.autocontrast,
            color.equalize,
            color.invert,
        ),
        image,
    )


def _signed(key: Array, number: Array, level: Array) -> Array:
    negative = jax.random.bernoulli(key) & (number <= _LAST_SIGNED)
    return jnp.where(negative, -level, level)


def _in_turn(
    draw: Callable[[Array], Iterator[tuple[Array, Array]]], strengths: Strengths, fill: Fill
) -> Change:
    """The operations that `draw(key)` yields, as (number, level), one after the other."""

    def apply(key: Array, image: Array) -> Array:
        for number, level in draw(key):
            image = apply_operation(image, number, level, strengths, fill)
        return image

    def moves(key: Array, size: Size) -> list[Array]:
        return [operation_matrix(*drawn, size, strengths) for drawn in draw(key)]

    return Change(apply, moves=moves)


def randaugment(count: int = 2, magnitude: float = 9, fill: Fill = 0.5) -> Change:
    """`count` operations, one after the other, each at `magnitude` of 0..30 (Cubuk 2020).

    Of the first 14 of NAMES, with AutoAugment's ranges.
    """
    check_number("count", count, 1, 20, whole=True)
    check_number("magnitude", magnitude, 0, 30)
    fill = check_fill(fill)

    def draw(key: Array) -> Iterator[tuple[Array, Array]]:
        for layer in range(count):
            which, sign = jax.random.split(jax.random.fold_in(key, layer))
            number = jax.random.randint(which, (), 0, _NUMBER["invert"])
            yield number, _signed(sign, number, jnp.asarray(magnitude / 30, jnp.float32))

    return _in_turn(draw, _USUAL, fill)


def trivialaugment(fill: Fill = 0.5) -> Change:
    """One operation at a random strength, of 31 (Müller 2021, "wide" ranges)."""
    fill = check_fill(fill)

    def draw(key: Array) -> Iterator[tuple[Array, Array]]:
        which, strength, sign = jax.random.split(key, 3)
        number = jax.random.randint(which, (), 0, _NUMBER["invert"])
        level = jax.random.randint(strength, (), 0, 31) / 30
        yield number, _signed(sign, number, level)

    return _in_turn(draw, _WIDE, fill)


def autoaugment(dataset: str = "imagenet", fill: Fill = 0.5) -> Change:
    """One of 25 pairs of operations, learned on "cifar10" or "imagenet" (Cubuk 2019, appendix).

    Each operation of a pair has a probability and a level of 0..9.
    """
    if dataset not in _TABLES:
        raise UserError(f"dataset must be one of {', '.join(_TABLES)}, got {dataset!r}")
    fill = check_fill(fill)
    pairs = read_table(_TABLES[dataset])
    numbers = np.array([[_NUMBER[name] for name, _, _ in pair] for pair in pairs], np.int32)
    chances = np.array([[p for _, p, _ in pair] for pair in pairs], np.float32)
    levels = np.array([[level / 9 for _, _, level in pair] for pair in pairs], np.float32)

    def draw(key: Array) -> Iterator[tuple[Array, Array]]:
        pair = jax.random.randint(key, (), 0, len(pairs))
        for i in range(2):
            happens, sign = jax.random.split(jax.random.fold_in(key, 1 + i))
            chance, level = jnp.asarray(chances)[pair, i], jnp.asarray(levels)[pair, i]
            number = jnp.asarray(numbers)[pair, i]
            number = jnp.where(jax.random.bernoulli(happens, chance), number, 0)
            yield number, _signed(sign, number, level)

    return _in_turn(draw, _USUAL, fill)


def read_table(table: str) -> list[list[tuple[str, float, int]]]:
    """The pairs of a table: (operation, probability, level) twice in each."""
    pairs = []
    for line in table.strip().splitlines():
        words = [half.split() for half in line.split("|")]
        pairs.append([(name, int(p) / 10, int(level)) for name, p, level in words])
    return pairs


# Operation, probability in tenths, level. An operation without a strength has level 0 here.
_CIFAR10 = """
invert       1 0 | contrast     2 6
rotate       7 2 | translate_x  3 9
sharpness    8 1 | sharpness    9 3
shear_y      5 8 | translate_y  7 9
autocontrast 5 0 | equalize     9 0
shear_y      2 7 | posterize    3 7
color        4 3 | brightness   6 7
sharpness    3 9 | brightness   7 9
equalize     6 0 | equalize     5 0
contrast     6 7 | sharpness    6 5
color        7 7 | translate_x  5 8
equalize     3 0 | autocontrast 4 0
translate_y  4 3 | sharpness    2 6
brightness   9 6 | color        2 8
solarize     5 2 | invert       0 0
equalize     2 0 | autocontrast 6 0
equalize     2 0 | equalize     6 0
color        9 9 | equalize     6 0
autocontrast 8 0 | solarize     2 8
brightness   1 3 | color        7 0
solarize     4 5 | autocontrast 9 0
translate_y  9 9 | translate_y  7 9
autocontrast 9 0 | solarize     8 3
equalize     8 0 | invert       1 0
translate_y  7 9 | autocontrast 9 0
"""
_IMAGENET = """
posterize    4 8 | rotate       6 9
solarize     6 5 | autocontrast 6 0
equalize     8 0 | equalize     6 0
posterize    6 7 | posterize    6 6
equalize     4 0 | solarize     2 4
equalize     4 0 | rotate       8 8
solarize     6 3 | equalize     6 0
posterize    8 5 | equalize    10 0
rotate       2 3 | solarize     6 8
equalize     6 0 | posterize    4 6
rotate       8 8 | color        4 0
rotate       4 9 | equalize     6 0
equalize     0 0 | equalize     8 0
invert       6 0 | equalize    10 0
color        6 4 | contrast    10 8
rotate       8 8 | color       10 2
color        8 8 | solarize     8 7
sharpness    4 7 | invert       6 0
shear_x      6 5 | equalize    10 0
color        4 0 | equalize     6 0
equalize     4 0 | solarize     2 4
solarize     6 5 | autocontrast 6 0
invert       6 0 | equalize    10 0
color        6 4 | contrast    10 8
equalize     8 0 | equalize     6 0
"""
_TABLES = {"cifar10": _CIFAR10, "imagenet": _IMAGENET}
