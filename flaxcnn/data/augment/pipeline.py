"""From a policy, which is data, to one function on a batch.

A policy is a list of entries: `[("flip",), ("rotate", 15), ("random_erasing", 0.25)]`. An entry is
a name and the settings of its maker, in order; a dict at the end gives settings by name, and "p"
the probability of the entry. The image goes through the entries in order, and neighbouring
geometric ones are one warp. "alternating_flip" may only come first, mixing only last.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.data import geometry
from flaxcnn.data.augment.kinds import Change, Operation, Warp, with_probability
from flaxcnn.data.augment.mixing import (
    Mix,
    cutmix,
    mix_batch,
    mixup,
    mixup_or_cutmix,
    take_following,
)
from flaxcnn.data.augment.operations import OPERATIONS
from flaxcnn.data.augment.policies import autoaugment, randaugment, trivialaugment
from flaxcnn.data.augment.progressive import progressive_resize
from flaxcnn.data.augment.scenes import Mosaic, Scene, mosaic, mosaic_batch, random_iou_crop
from flaxcnn.data.augment.settings import call_maker, freeze_policy, split_entry
from flaxcnn.data.geometry import Size
from flaxcnn.data.rounding import product
from flaxcnn.data.targets import Boxes, has_places, move
from flaxcnn.errors import UserError

Array = jax.Array
Policy = Sequence[Sequence[Any]]
Augment = Callable[[Array, Array, Array, Any], tuple[Array, Any]]

_PURPOSE = 0x61756721  # folded into a step's key; micro-batches fold in small numbers


class AlternatingFlip:
    """Left and right exchanged in every other epoch; half of the images start with it.

    Which half is a hash of the pixels. Jordan 2024 (arXiv:2404.00498), section 3.6.
    """


Entry = Operation | Scene | Mix | Mosaic | AlternatingFlip

SCENES: dict[str, Callable[..., Scene | Mosaic]] = {
    "random_iou_crop": random_iou_crop,
    "mosaic": mosaic,
}
MAKERS: dict[str, Callable[..., Entry]] = {
    **OPERATIONS,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "autoaugment": autoaugment,
    "alternating_flip": AlternatingFlip,
    "progressive_resize": progressive_resize,
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup_or_cutmix": mixup_or_cutmix,
    **SCENES,
}


def read_policy(
    policy: Policy, channels: int | None = None, *, by_class: bool = False, places: bool = False
) -> list[Any]:
    """The operations that the entries of `policy` stand for, checked.

    Raises UserError naming the first entry that is wrong, that needs colour where the images have
    one channel, that cannot be done to the images of some classes only (`by_class`), or that
    cannot take along what has a place in the image (`places`).
    """
    operations = []
    for index, entry in enumerate(freeze_policy(policy)):
        try:
            operation = _read_entry(entry)
            if channels == 1 and isinstance(operation, Change) and operation.needs_color:
                raise UserError("the images are grey")
            if isinstance(operation, AlternatingFlip) and index:
                raise UserError("can only be the first entry")
            if operations and isinstance(operations[-1], Mix | Mosaic):
                raise UserError(f"nothing can follow {policy[index - 1][0]}")
            if by_class and not _keeps_to_its_image(operation):
                raise UserError("cannot be for data.augment_classes only")
            if places and not _takes_places_along(operation):
                raise UserError("cannot take boxes, keypoints or masks along")
        except UserError as error:
            raise UserError(f"data.augment[{index}] {entry!r}: {error}") from None
        operations.append(operation)
    return operations


def _keeps_to_its_image(operation: Entry) -> bool:
    return isinstance(operation, Warp) or (isinstance(operation, Change) and operation.keeps_size)


def _takes_places_along(operation: Entry) -> bool:
    if isinstance(operation, Change):
        return operation.moves is not None
    return not isinstance(operation, Mix)


def _read_entry(entry: Any) -> Entry:
    name, settings, named = split_entry(entry, MAKERS)
    make, chance = MAKERS[name], None
    if "p" not in inspect.signature(make).parameters:
        chance = named.pop("p", None)
    operation = call_maker(name, make, settings, named)
    if chance is None:
        return operation
    if not _keeps_to_its_image(operation):
        raise UserError(f"{name} has no p")
    return with_probability(operation, chance)


def augmented_shape(policy: Policy, image_shape: Sequence[int]) -> tuple[int, ...]:
    """(height, width, channels) of what `policy` makes of images of `image_shape`."""
    operations = read_policy(policy, channels=image_shape[-1])
    # What looks at boxes keeps an image's size.
    transform = make_transform([o for o in operations if isinstance(o, Warp | Change)])
    image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    return jax.eval_shape(transform, jax.random.key(0), image, ())[0].shape


def make_augment(
    policy: Policy,
    image_shape: Sequence[int],
    steps_per_epoch: int,
    axis_name: str | None = None,
    *,
    classes: Sequence[int] = (),
    least_share: float = 0.0,
) -> Augment:
    """Makes the augmentation that training compiles into its step, of a list of entries.

    (root key, step, images uint8 [N, H, W, C], targets) -> images float32 in 0..1, targets.
    Targets are any pytree with a leading axis N; what of them has a place in the image
    (`data/targets.py`) moves with it. Mixing makes `Mixed` of them.
    What happens to an example depends on the key, the step and its position in the global batch:
    bit for bit however the batch is divided, but for the last bit after chains of many warps, where
    the compiler's choices still show (measured: 6e-7 after twelve).
    Of targets that are `Boxes`, those of which less than `least_share` of their area is left are
    dropped. With `classes`, only images of these labels are changed, and targets are labels int32
    [N]. Under `pmap`, `axis_name` is the mapped axis. Raises UserError as `read_policy`; for
    targets with places when it is traced.
    """
    operations = read_policy(policy, channels=image_shape[-1], by_class=bool(classes))
    alternate = bool(operations) and isinstance(operations[0], AlternatingFlip)
    mix = operations[-1] if operations and isinstance(operations[-1], Mix | Mosaic) else None
    transform = make_transform([o for o in operations if isinstance(o, Warp | Change | Scene)])

    def augment(key: Array, step: Array, images: Array, targets: Any) -> tuple[Array, Any]:
        if has_places(targets):
            read_policy(policy, places=True)
        if any(isinstance(o, Scene | Mosaic) for o in operations) and type(targets) is not Boxes:
            raise UserError("data.augment: random_iou_crop and mosaic need targets that are boxes")
        if isinstance(targets, Boxes):
            targets = targets.replace(least_share=least_share)
        key = jax.random.fold_in(jax.random.fold_in(key, step), _PURPOSE)
        positions = jnp.arange(len(images))
        if axis_name is not None:
            positions += jax.lax.axis_index(axis_name) * len(images)
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        if alternate:
            flipped = (jax.vmap(_starts_flipped)(images) + step // steps_per_epoch) % 2 == 1
            images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
            targets = _flip_targets(flipped, targets, (images.shape[1], images.shape[2]))
        plain = product(images.astype(jnp.float32), 1 / 255)
        images, targets = jax.vmap(transform)(keys, plain, targets)
        if classes:
            chosen = (_labels(targets)[:, None] == jnp.asarray(classes)[None]).any(axis=1)
            images = jnp.where(chosen[:, None, None, None], images, plain)
        if mix is None:
            return images, targets
        keys = jax.vmap(lambda k: jax.random.fold_in(k, len(operations)))(keys)
        if isinstance(mix, Mosaic):
            following = functools.partial(take_following, axis_name=axis_name)
            return mosaic_batch(mix, keys, images, targets, following)
        return mix_batch(mix, keys, images, targets, axis_name)

    return augment


def _labels(targets: Any) -> Array:
    if not hasattr(targets, "ndim") or targets.ndim != 1:
        raise UserError("data.augment_classes is for targets that are one label per image")
    return targets


def _flip_targets(flipped: Array, targets: Any, size: Size) -> Any:
    """`targets` of [N] images of `size`, moved with those that are exchanged left and right."""
    if not has_places(targets):
        return targets
    mirror = geometry.centered(geometry.scaling(-1, 1), size)
    matrices = jnp.where(flipped[:, None, None], mirror[None], jnp.eye(3)[None])
    return jax.vmap(lambda target, matrix: move(target, matrix, size))(targets, matrices)


def make_transform(operations: Sequence[Operation | Scene]) -> Callable[..., tuple[Array, Any]]:
    """(key, image float32 [H, W, C] in 0..1, its targets) -> both after `operations`."""
    stages = _warps_together(operations)

    def transform(key: Array, image: Array, targets: Any) -> tuple[Array, Any]:
        count = itertools.count()
        for stage in stages:
            keys = [jax.random.fold_in(key, next(count)) for _ in stage]
            image, targets = _apply(stage, keys, image, targets)
        return image, targets

    return transform


def _warps_together(operations: Sequence[Operation | Scene]) -> list[list[Operation | Scene]]:
    """Each operation alone, but neighbouring warps in one list if their fills agree."""
    stages: list[list[Operation | Scene]] = []
    for operation in operations:
        last = stages[-1] if stages else []
        fills = {o.fill for o in last if isinstance(o, Warp)} - {None}
        after_warp = bool(last) and isinstance(last[0], Warp)
        if (
            isinstance(operation, Warp)
            and after_warp
            and len(fills | {operation.fill} - {None}) < 2
        ):
            last.append(operation)
        else:
            stages.append([operation])
    return stages


def _apply(
    stage: list[Operation | Scene], keys: list[Array], image: Array, targets: Any
) -> tuple[Array, Any]:
    """One operation, or several warps by a single sampling of the image.

    Targets move once per sampling, too: what the first took out, the second cannot bring back.
    """
    size = (image.shape[0], image.shape[1])
    if isinstance(stage[0], Scene):
        return stage[0].apply(keys[0], image, targets)
    if isinstance(stage[0], Change):
        change, key = stage[0], keys[0]
        image = change.apply(key, image)
        if has_places(targets):
            assert change.moves is not None  # by read_policy
            for matrix in change.moves(key, size):
                targets = move(targets, matrix, (image.shape[0], image.shape[1]))
        return image, targets
    warps = [operation for operation in stage if isinstance(operation, Warp)]
    matrix = geometry.compose(*(w.draw(key, size) for w, key in zip(warps, keys, strict=True)))
    fill = next((warp.fill for warp in warps if warp.fill is not None), "edge")
    sample = geometry.warp_axes if all(warp.aligned for warp in warps) else geometry.warp_image
    image = sample(image, matrix, nearest=all(warp.whole for warp in warps), fill=fill)
    return image, move(targets, matrix, size)


def _starts_flipped(image: Array) -> Array:
    """0 or 1, from all bytes of a uint8 image: its multiplicative hash (Knuth, section 6.4)."""
    values = image.reshape(-1).astype(jnp.uint32)
    odd = 2 * jnp.arange(values.size, dtype=jnp.uint32) + 1
    return ((values * odd * jnp.uint32(2654435769)).sum(dtype=jnp.uint32) >> 16).astype(
        jnp.int32
    ) & 1
