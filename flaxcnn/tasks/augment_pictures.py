"""What a policy of augmentation does to images, as one picture."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flaxcnn.data.annotated import MaskFile
from flaxcnn.data.augment import make_augment, read_policy
from flaxcnn.data.images import fit_matrix, probe_image, read_image
from flaxcnn.data.targets import IGNORED, Mask
from flaxcnn.errors import UserError
from flaxcnn.tasks.figures import make_figure
from flaxcnn.tasks.segmentation_pictures import color_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Policy = Sequence[Sequence[Any]]
Row = tuple[str, list[np.ndarray]]  # what is written above, images [H, W, C] from left to right

# Inches; the last two are the size of a letter of the labels.
_CELL, _GAP, _MARGIN, _LINE, _LETTER = 1.5, 0.05, 0.12, 0.22, 0.085


def draw_policy(
    policy: Policy,
    files: Sequence[str],
    *,
    masks: Sequence[str] = (),
    image_size: Sequence[int] = (),
    resize: str = "crop",
    channels: int = 0,
    samples: int = 8,
    seed: int = 0,
    title: str = "",
) -> "Figure":
    """Draws the images, a row of samples for each entry of `policy` alone, and two for all of it.

    The images are brought to `image_size`, or to the first one's own size, and taken in turn; each
    turn is an epoch. Mixing, whose other image is the next of the batch, takes the next file, or of
    a single file its mirror image. With `masks`, a file for each image, their classes lie over it
    and move along. Which samples are drawn depends on `seed` only. `title` says where the policy is
    from.
    Raises UserError for a wrong policy or none, and for files that cannot be read.
    """
    if not policy:
        raise UserError("there is nothing to draw: the config has no data.augment")
    if samples < max(1, len(files)):
        raise UserError(f"--samples is {samples}, and there are {len(files)} images to be shown")
    first = read_image(files[0], tuple(image_size), resize, channels)
    size = first.shape[:2]
    images = np.stack([read_image(file, size, resize, first.shape[-1]) for file in files])
    classes = _read_masks(files, masks, size, resize) if masks else None
    read_policy(policy, first.shape[-1], places=bool(masks))  # whose errors number the entries
    shown = list(images / 255)
    if classes is not None:
        shown = [_lay_over(*pair) for pair in zip(shown, classes, strict=True)]
    rows: list[Row] = [(f"original, {size[0]}x{size[1]}", shown)]
    title += f": data.augment, seed {seed}. In each row one of its entries alone"
    for entry in policy:
        rows.append((repr(entry), sample_policy([entry], images, samples, seed, classes)))
    if len(policy) > 1:
        both = sample_policy(policy, images, 2 * samples, seed, classes)
        rows += [("all of them, in order", both[:samples]), ("", both[samples:])]
        title += "; at the end all of them, in order"
    return _draw_rows(rows, samples, title)


def sample_policy(
    policy: Policy,
    images: np.ndarray,
    count: int,
    seed: int = 0,
    classes: np.ndarray | None = None,
) -> list[np.ndarray]:
    """What `policy` makes of `images` uint8 [N, H, W, C], in turn: `count` arrays in 0..1.

    With `classes` uint8 [N, H, W], these lie over them.
    """
    augment = jax.jit(make_augment(policy, images.shape[1:], steps_per_epoch=len(images)))
    partners = np.roll(images, -1, axis=0) if len(images) > 1 else images[:, :, ::-1]
    pairs = np.stack([images, partners], axis=1)
    key, targets, samples = jax.random.key(seed), np.zeros(2, np.int32), []
    for step in range(count):
        index = step % len(images)
        if classes is not None:
            targets = Mask(classes[[index, index]])
        made, moved = augment(key, step, pairs[index], targets)
        image = np.asarray(made[0])
        samples.append(image if classes is None else _lay_over(image, np.asarray(moved.classes[0])))
    return samples


def _read_masks(
    files: Sequence[str], masks: Sequence[str], size: tuple[int, int], resize: str
) -> np.ndarray:
    """The classes of each image, uint8 [N, *size]."""
    if len(masks) != len(files):
        raise UserError(f"--mask: there are {len(masks)} masks for {len(files)} images")
    found = []
    for file, path in zip(files, masks, strict=True):
        height, width, _ = probe_image(file)
        matrix = fit_matrix((height, width), size, resize)
        mask = MaskFile(path, IGNORED, None).fitted(matrix, (height, width), size)
        found.append(mask.classes)
    return np.stack(found)


def _lay_over(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """An image in 0..1 under the colours of its classes."""
    return color_classes(255 * image.clip(0, 1), classes) / 255


def _draw_rows(rows: Sequence[Row], columns: int, title: str) -> "Figure":
    """Rows of images with their text above, on one pair of axes in inches.

    `title` stands beside the images of the first row, or above them where there is no room.
    """
    height, width = rows[0][1][0].shape[:2]
    tall = _CELL * float(np.clip(height / width, 0.3, 3.0))
    across = columns * (_CELL + _GAP) - _GAP
    labels = [textwrap.wrap(text, int(across / _LETTER)) for text, _ in rows]
    beside = len(rows[0][1]) * (_CELL + _GAP) + _MARGIN  # where the first row leaves room
    told = textwrap.wrap(title, max(1, int((across - beside) / _LETTER)))
    if len(told) * _LINE > tall:
        told, labels[0] = [], textwrap.wrap(title, int(across / _LETTER)) + labels[0]
    down = len(rows) * (tall + 2 * _GAP) + sum(map(len, labels)) * _LINE - 2 * _GAP
    figure = make_figure(across + 2 * _MARGIN, down + 2 * _MARGIN)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    y = _MARGIN
    for label, (_, images) in zip(labels, rows, strict=True):
        _write(axes, label, _MARGIN, y)
        y += len(label) * _LINE
        for column, image in enumerate(images):
            _show(axes, image, _MARGIN + column * (_CELL + _GAP), y, tall)
        y += tall + 2 * _GAP
    _write(axes, told, _MARGIN + beside, _MARGIN + len(labels[0]) * _LINE)
    axes.set_axis_off()
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0), aspect="auto")
    return figure


def _write(axes: Any, lines: Sequence[str], left: float, top: float) -> None:
    for number, line in enumerate(lines):
        y = top + (number + 0.5) * _LINE
        axes.text(left, y, line, va="center", family="monospace", fontsize=10, parse_math=False)


def _show(axes: Any, image: np.ndarray, left: float, top: float, tall: float) -> None:
    """The image as large as a cell allows, in its proportions."""
    scale = min(_CELL / image.shape[1], tall / image.shape[0])
    right, bottom = left + scale * image.shape[1], top + scale * image.shape[0]
    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    pixels = pixels if image.shape[-1] == 3 else pixels[..., 0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top))
