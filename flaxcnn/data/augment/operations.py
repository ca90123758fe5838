"""The random transforms a policy may name: each draws its amounts from a key, for one image.

A maker (`rotate(15)`) checks its settings and returns an `Operation`; `OPERATIONS` has them by the
name they have in a policy. Amounts are uniform within their range unless said otherwise, and `p` is
the probability that anything is done at all.
"""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxcnn.data import geometry
from flaxcnn.data.augment import color, filters
from flaxcnn.data.augment.kinds import Change, Operation, Warp, with_probability
from flaxcnn.data.augment.resize import resize_image
from flaxcnn.data.augment.settings import check_fill, check_number, check_range
from flaxcnn.data.geometry import Array, Fill, Size
from flaxcnn.data.rounding import product, uniform

# ---- Geometry


def flip(p: float = 0.5) -> Operation:
    """Left and right exchanged."""
    return _mirror(-1, 1, p)


def vertical_flip(p: float = 0.5) -> Operation:
    """Top and bottom exchanged."""
    return _mirror(1, -1, p)


def _mirror(x: int, y: int, p: float) -> Operation:
    def draw(key: Array, size: Size) -> Array:
        return geometry.centered(geometry.scaling(x, y), size)

    return with_probability(Warp(draw, fill=None, aligned=True, whole=True), p)


def crop(padding: int, fill: Fill = "reflect") -> Operation:
    """Pads each side by `padding` pixels and cuts the image's size out at random."""
    check_number("padding", padding, 0, 4096, whole=True)

    def draw(key: Array, size: Size) -> Array:
        x, y = jax.random.randint(key, (2,), -padding, padding + 1)
        return geometry.translation(x, y)

    return Warp(draw, check_fill(fill), aligned=True, whole=True)


def random_resized_crop(
    scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Operation:
    """A part of the image, enlarged to the whole of it (Szegedy 2015, section 6).

    `scale` is the range of the part's area, `ratio` that of width over height relative to the
    image's own (log-uniform). A side that would be longer than the image's is cut to it.
    """
    check_range("scale", scale, 1e-6, 1)
    check_range("ratio", ratio, 1e-3, 1e3)

    def draw(key: Array, size: Size) -> Array:
        height, width = size
        area, aspect, at = (jax.random.fold_in(key, i) for i in range(2, 5))
        share = jnp.sqrt(uniform(area, *scale))
        root = jnp.exp(0.5 * uniform(aspect, math.log(ratio[0]), math.log(ratio[1])))
        across, down = jnp.minimum(share * root, 1), jnp.minimum(share / root, 1)
        left, top = jax.random.uniform(at, (2,))
        return geometry.compose(
            geometry.translation(
                product(-left * width, 1 - across), product(-top * height, 1 - down)
            ),
            geometry.scaling(1 / across, 1 / down),
        )

    return Warp(draw, "edge", aligned=True)


def rotate(degrees: float, fill: Fill = "reflect") -> Operation:
    """Turns by up to `degrees` either way about the centre."""
    check_number("degrees", degrees, 0, 180)

    def draw(key: Array, size: Size) -> Array:
        return geometry.centered(geometry.rotation(uniform(key, -degrees, degrees)), size)

    return Warp(draw, check_fill(fill))


def translate(share: float, fill: Fill = "reflect") -> Operation:
    """Moves by up to `share` of the width and of the height, any way."""
    check_number("share", share, 0, 1)

    def draw(key: Array, size: Size) -> Array:
        x, y = uniform(key, -share, share, (2,))
        return geometry.translation(product(x, size[1]), product(y, size[0]))

    return Warp(draw, check_fill(fill), aligned=True)


def shear(degrees: float, fill: Fill = "reflect") -> Operation:
    """Slants both axes by up to `degrees` either way, about the centre."""
    check_number("degrees", degrees, 0, 80)

    def draw(key: Array, size: Size) -> Array:
        x, y = jnp.tan(uniform(key, -degrees, degrees, (2,)) * (jnp.pi / 180))
        # One after the other: of both at once the determinant would vanish at 45 degrees.
        slant = geometry.compose(geometry.shearing(x, 0), geometry.shearing(0, y))
        return geometry.centered(slant, size)

    return Warp(draw, check_fill(fill))


def zoom(low: float, high: float, fill: Fill = "reflect") -> Operation:
    """Enlarges `low` to `high` times about the centre; below 1 shows more than the image."""
    check_number("low", low, 0.01, 100)
    check_number("high", high, low, 100)

    def draw(key: Array, size: Size) -> Array:
        factor = uniform(key, low, high)
        return geometry.centered(geometry.scaling(factor, factor), size)

    return Warp(draw, check_fill(fill), aligned=True)


def affine(
    degrees: float = 0.0,
    share: float = 0.0,
    zooms: tuple[float, float] = (1.0, 1.0),
    slant: float = 0.0,
    fill: Fill = "reflect",
) -> Operation:
    """`shear(slant)`, `zoom(*zooms)`, `rotate(degrees)` and `translate(share)`, all at once."""
    check_range("zooms", zooms, 0.01, 100)
    parts = (shear(slant), zoom(*zooms), rotate(degrees), translate(share))

    def draw(key: Array, size: Size) -> Array:
        keys = jax.random.split(key, len(parts))
        drawn = [part.draw(k, size) for part, k in zip(parts, keys, strict=True)]  # pyright: ignore
        return geometry.compose(*drawn)

    return Warp(draw, check_fill(fill))


def perspective(distortion: float, p: float = 1.0, fill: Fill = "reflect") -> Operation:
    """Moves each corner inwards by up to `distortion` of half the width and height."""
    check_number("distortion", distortion, 0, 0.9)

    def draw(key: Array, size: Size) -> Array:
        half = jnp.asarray([size[1] / 2, size[0] / 2])
        inward = product(uniform(key, 0, distortion, (4, 2)), half[None])
        sign = jnp.asarray([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
        corners = half[None] * (1 - sign) + product(sign, inward)
        return geometry.perspective(corners, size)

    return with_probability(Warp(draw, check_fill(fill)), p)


def elastic(sigma: float, strength: float, fill: Fill = "reflect") -> Operation:
    """`filters.elastic` by uniform noise; it moves pixels by about `strength` / (3 `sigma`)."""
    check_number("sigma", sigma, 0.1, 1000)
    check_number("strength", strength, 0, 1e5)
    fill = check_fill(fill)

    def apply(key: Array, image: Array) -> Array:
        noise = uniform(key, -1, 1, (*image.shape[:2], 2))
        return filters.elastic(image, noise, sigma, strength, fill)

    return Change(apply, moves=None)


def resize(height: int, width: int) -> Operation:
    """Brings the image to another size, antialiased; the entries after it see that size.

    Evaluation stays at the data's own size: for networks that take any (Touvron 2019).
    """
    check_number("height", height, 1, 4096, whole=True)
    check_number("width", width, 1, 4096, whole=True)
    return Change(
        lambda key, image: resize_image(image, (height, width)),
        keeps_size=False,
        moves=lambda key, size: [geometry.scaling(width / size[1], height / size[0])],
    )


# ---- Colours


def _factor(
    function: Callable[..., Array], *, needs_color: bool = False
) -> Callable[..., Operation]:
    """Maker of an operation whose factor is 1 give or take `amount`."""

    def make(amount: float) -> Operation:
        check_number("amount", amount, 0, 10)
        low = max(0.0, 1 - amount)
        return Change(
            lambda key, image: function(image, uniform(key, low, 1 + amount)), needs_color
        )

    make.__doc__ = f"{inspect.getdoc(function)}\n\nThe factor is within `amount` of 1."
    return make


def _sometimes(
    function: Callable[[Array], Array], *, needs_color: bool = False
) -> Callable[..., Operation]:
    """Maker of an operation without an amount, done with probability `p`."""

    def make(p: float = 0.5) -> Operation:
        return with_probability(Change(lambda key, image: function(image), needs_color), p)

    make.__doc__ = function.__doc__
    return make


brightness = _factor(color.brightness)
contrast = _factor(color.contrast)
saturation = _factor(color.saturation, needs_color=True)
sharpness = _factor(filters.sharpness)
grayscale = _sometimes(color.grayscale, needs_color=True)
equalize = _sometimes(color.equalize)
autocontrast = _sometimes(color.autocontrast)
invert = _sometimes(color.invert)


def hue(turns: float) -> Operation:
    """Shifts the hue by up to `turns` (0..0.5) of the colour circle either way."""
    check_number("turns", turns, 0, 0.5)
    return Change(
        lambda key, image: color.hue(image, uniform(key, -turns, turns)), needs_color=True
    )


def gamma(amount: float) -> Operation:
    """To a power from 1 / (1 + `amount`) to 1 + `amount`, log-uniform."""
    check_number("amount", amount, 0, 10)
    most = math.log1p(amount)
    return Change(lambda key, image: color.gamma(image, jnp.exp(uniform(key, -most, most))))


def posterize(bits: int, p: float = 0.5) -> Operation:
    """Keeps the highest `bits` (1..8) of each byte."""
    check_number("bits", bits, 1, 8, whole=True)
    return with_probability(Change(lambda key, image: color.posterize(image, bits)), p)


def solarize(threshold: float, p: float = 0.5) -> Operation:
    """Negative of what is not below `threshold` (0..1)."""
    check_number("threshold", threshold, 0, 1)
    return with_probability(Change(lambda key, image: color.solarize(image, threshold)), p)


def gaussian_blur(low: float, high: float) -> Operation:
    """Gaussian of a standard deviation of `low` to `high` pixels."""
    check_number("low", low, 0.05, 100)
    check_number("high", high, low, 100)

    def apply(key: Array, image: Array) -> Array:
        radius = min(filters.blur_radius(high), *(side - 1 for side in image.shape[:2]))
        return jnp.minimum(filters.gaussian_blur(image, uniform(key, low, high), radius), 1)

    return Change(apply)


def gaussian_noise(std: float) -> Operation:
    """Adds noise of standard deviation `std` to every value, cut to 0..1."""
    check_number("std", std, 0, 1)
    return Change(
        lambda key, image: jnp.clip(image + product(std, jax.random.normal(key, image.shape)), 0, 1)
    )


# ---- Erasing


def random_erasing(
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    fill: float | str = "noise",
) -> Operation:
    """Fills a rectangle inside the image with noise, or with the value `fill` (Zhong 2017).

    `scale` is the range of its area, `ratio` that of its height over its width (log-uniform here).
    Where the paper draws again when a side is too long, it is cut to the image's.
    """
    check_range("scale", scale, 0, 1)
    check_range("ratio", ratio, 1e-3, 1e3)
    if fill != "noise":
        check_number("fill", fill, 0, 1)

    def apply(key: Array, image: Array) -> Array:
        height, width, _ = image.shape
        area, aspect, at, noise = (jax.random.fold_in(key, i) for i in range(2, 6))
        root = jnp.exp(0.5 * uniform(aspect, math.log(ratio[0]), math.log(ratio[1])))
        side = jnp.sqrt(uniform(area, *scale) * (height * width))
        tall = jnp.clip(jnp.round(side * root), 1, height)
        wide = jnp.clip(jnp.round(side / root), 1, width)
        y, x = jax.random.uniform(at, (2,))
        top, left = jnp.floor(y * (height - tall + 1)), jnp.floor(x * (width - wide + 1))
        inside = _rectangle(image, top, left, top + tall, left + wide)
        value = jax.random.uniform(noise, image.shape) if fill == "noise" else float(fill)
        return jnp.where(inside, value, image)

    return with_probability(Change(apply), p)


def cutout(size: int, fill: float = 0.5) -> Operation:
    """Fills a square of `size` pixels around a random pixel (DeVries 2017), cut at the borders."""
    check_number("size", size, 1, 4096, whole=True)
    check_number("fill", fill, 0, 1)

    def apply(key: Array, image: Array) -> Array:
        height, width, _ = image.shape
        top, left = jax.random.randint(key, (2,), 0, jnp.asarray([height, width])) - size // 2
        return jnp.where(_rectangle(image, top, left, top + size, left + size), fill, image)

    return Change(apply)


def _rectangle(image: Array, top: Array, left: Array, bottom: Array, right: Array) -> Array:
    """Bool [H, W, 1]: the rows top <= y < bottom and columns left <= x < right."""
    y = jnp.arange(image.shape[0])[:, None, None]
    x = jnp.arange(image.shape[1])[None, :, None]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


OPERATIONS: dict[str, Callable[..., Operation]] = {
    "flip": flip,
    "vertical_flip": vertical_flip,
    "crop": crop,
    "random_resized_crop": random_resized_crop,
    "rotate": rotate,
    "translate": translate,
    "shear": shear,
    "zoom": zoom,
    "affine": affine,
    "perspective": perspective,
    "elastic": elastic,
    "resize": resize,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "gamma": gamma,
    "grayscale": grayscale,
    "posterize": posterize,
    "solarize": solarize,
    "equalize": equalize,
    "autocontrast": autocontrast,
    "sharpness": sharpness,
    "invert": invert,
    "gaussian_blur": gaussian_blur,
    "gaussian_noise": gaussian_noise,
    "random_erasing": random_erasing,
    "cutout": cutout,
}
