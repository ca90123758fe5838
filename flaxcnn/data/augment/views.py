"""Test-time augmentation: a network's logits averaged over several views of the same image.

Views are data, as a policy is: `(("shift", 1), ("flip",))`. An entry is a name and its setting, and
stands for a few views with weights that sum to 1. The image goes through the entries in order and
every way there is: views combine as a product and weights multiply. This example is six views,
those of Jordan 2024 (arXiv:2404.00498).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.data.augment.settings import call_maker, check_number, freeze_policy, split_entry
from flaxcnn.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class View:
    """`show(images)`: float [N, H, W, C] as it is seen; the result counts `weight` of 1."""

    weight: float
    show: Callable[[Array], Array]


def flip() -> list[View]:
    """The image and its mirror image, 1/2 each (Krizhevsky 2012, section 4.1)."""
    return [View(0.5, lambda images: images), View(0.5, lambda images: images[:, :, ::-1])]


def shift(pixels: int) -> list[View]:
    """The image, 1/2, and moved down and right, and up and left, by `pixels`, 1/4 each.

    What is then beyond the borders is reflected, edge not repeated (Jordan 2024).
    """
    check_number("pixels", pixels, 1, 4096, whole=True)

    def moved(by: int) -> Callable[[Array], Array]:
        def show(images: Array) -> Array:
            height, width = images.shape[1:3]
            if pixels >= min(height, width):
                raise UserError(f"{height}x{width} images cannot be moved by {pixels} pixels")
            padded = jnp.pad(images, ((0, 0), (pixels,) * 2, (pixels,) * 2, (0, 0)), "reflect")
            start = pixels - by
            return padded[:, start : start + height, start : start + width]

        return show

    return [View(0.5, lambda images: images), View(0.25, moved(pixels)), View(0.25, moved(-pixels))]


def crops(size: int) -> list[View]:
    """Squares of `size` pixels: the centre and the four corners, 1/5 each.

    With `flip` the ten of Krizhevsky 2012, section 4.1. For a network that takes this size.
    """
    check_number("size", size, 1, 4096, whole=True)

    def cut(top: float, left: float) -> Callable[[Array], Array]:
        def show(images: Array) -> Array:
            height, width = images.shape[1:3]
            if size > min(height, width):
                raise UserError(f"{height}x{width} images have no {size}x{size} part")
            y, x = int(top * (height - size)), int(left * (width - size))
            return images[:, y : y + size, x : x + size]

        return show

    places = [(0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)]
    return [View(1 / len(places), cut(*place)) for place in places]


MAKERS: dict[str, Callable[..., list[View]]] = {"flip": flip, "shift": shift, "crops": crops}


def read_views(
    entries: Sequence[Sequence[Any]],
    image_shape: Sequence[int] | None = None,
    field: str = "data.views",
    *,
    places: bool = False,
) -> list[View]:
    """The views that `entries` stand for, for images of `image_shape` (H, W, C); [] for none.

    Raises UserError naming the first entry that is wrong, or, if the shape is given, that such
    images do not have; for any entry where targets have `places` in the image.
    """
    if entries and places:
        raise UserError(f"{field}: what is found in several views has no one place to be averaged")
    views = [View(1.0, lambda images: images)] if entries else []
    for index, entry in enumerate(freeze_policy(entries)):
        try:
            name, settings, named = split_entry(entry, MAKERS)
            made: list[View] = call_maker(name, MAKERS[name], settings, named)
            views = [_in_turn(first, second) for first in views for second in made]
            if image_shape is not None:
                viewed_shape(views, image_shape)
        except UserError as error:
            raise UserError(f"{field}[{index}] {entry!r}: {error}") from None
    return views


def _in_turn(first: View, second: View) -> View:
    return View(first.weight * second.weight, lambda images: second.show(first.show(images)))


def viewed_shape(views: Sequence[View], image_shape: Sequence[int]) -> tuple[int, ...]:
    """(H, W, C) of what a network is shown of images of `image_shape`: all views are alike."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = {jax.eval_shape(view.show, images).shape for view in views} or {images.shape}
    (shape,) = shapes
    return shape[1:]


def average_over(views: Sequence[View], function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Averages `function`, images -> a pytree of arrays [N, ...], over `views` by their weights.

    Of logits it is these that are averaged, as in Jordan 2024; Krizhevsky 2012 averages
    probabilities. One view is computed at a time, so that memory and compilation are those of one.
    Without views, `function` itself.
    """
    if not views:
        return function
    shows = [view.show for view in views]

    def average(images: Array) -> Any:
        outputs = jax.lax.map(
            lambda index: function(jax.lax.switch(index, shows, images)), jnp.arange(len(views))
        )

        def weigh(x: Array) -> Array:
            weights = jnp.asarray([view.weight for view in views], x.dtype)
            return (x * weights.reshape(-1, *(1,) * (x.ndim - 1))).sum(axis=0)

        return jax.tree.map(weigh, outputs)

    return average
