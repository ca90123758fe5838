"""`load_dataset`: from the config's `data.source` to splits of uint8 images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flaxcnn.data.images import ImageFormat, fit_image
from flaxcnn.data.splits import ArraySplit, Opened, Split, hold_out, load_records, map_chunks
from flaxcnn.errors import UserError

_DIGITS_SPLIT_SEED = 0  # of no run: every run is tested on the same 360 digits


@dataclass(frozen=True)
class Dataset:
    """A set for classification. `splits` has "train", and where they exist "validation", "test"."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    splits: dict[str, Split]
    skipped: int  # damaged images left out


def load_dataset(
    source: str,
    *,
    image_size: Sequence[int] = (),
    resize: str = "crop",
    channels: int = 0,
    split: Sequence[float] = (0.7, 0.15, 0.15),
    validation: float = 0.1,
    seed: int = 0,
    on_bad_image: str = "error",
    resident_limit: int = 2**31,
) -> Dataset:
    """Opens "digits", "tfds:<name>" or "folder:<path>"; the arguments are the fields of `data`.

    Digits are scikit-learn's 1,797 of 8x8 pixels, with a test split that no seed changes. A folder
    of classes without splits is divided by `split` (train, validation, test). Any other source
    without a validation split holds out the share `validation` of train (0 holds out none). Both
    are stratified and depend on `seed` only. Every image is decoded once here, and those of splits
    up to `resident_limit` bytes stay in memory.
    Raises UserError, in one line, for a wrong field, missing data, or a damaged image (unless
    on_bad_image="skip").
    """
    image_format = ImageFormat(tuple(image_size), resize, channels)
    _check_fields(image_format, split, validation, on_bad_image, resident_limit)
    kind, _, name = source.partition(":")
    if source == "digits":
        dataset = _load_digits(image_format)
    elif kind == "tfds" and name:
        from flaxcnn.data.tfds_source import open_tfds  # loads tfds only where it is needed

        opened = open_tfds(name, image_format)
        dataset = _load(source, opened, on_bad_image, resident_limit)
    elif kind == "folder" and name:
        from flaxcnn.data.folder import open_folder

        opened = open_folder(name, image_format)
        dataset = _load(source, opened, on_bad_image, resident_limit)
    else:
        raise UserError(f"data.source must be digits, tfds:<name> or folder:<path>, got {source!r}")
    splits = dict(dataset.splits)
    if "all" in splits:
        train, validation, test = split
        splits["train"] = splits.pop("all")
        _move(splits, "test", test, seed, f"data.split={tuple(split)}")
        _move(splits, "validation", validation / (train + validation), seed, f"data.split={split}")
    elif "validation" not in splits:
        _move(splits, "validation", validation, seed, f"data.validation={validation}")
    return dataclasses.replace(dataset, splits=splits)


def compute_normalization(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, float32 [C], of pixels scaled to 0..1.

    Sums of integers, so exact and independent of the order. A channel that is constant over the
    whole split gets the deviation 1: divided by it, its pixels become 0.
    """

    def histogram(indices: np.ndarray) -> np.ndarray:
        pixels = split.load(indices)[0]
        channels = pixels.reshape(-1, pixels.shape[-1]).T
        return np.stack([np.bincount(channel, minlength=256) for channel in channels])

    counts = sum(map_chunks(histogram, len(split), "normalisation"))
    values = np.arange(256)
    total, first, second = (counts @ values**power for power in range(3))
    mean = first / total
    variance = [  # in Python's integers: total * second exceeds 64 bits for a large set
        (int(n) * int(s) - int(m) ** 2) / int(n) ** 2
        for n, m, s in zip(total, first, second, strict=True)
    ]
    std = np.sqrt(variance)
    std[std == 0] = 255
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def _check_fields(
    image_format: ImageFormat,
    split: Sequence[float],
    validation: float,
    on_bad_image: str,
    resident_limit: int,
) -> None:
    size, resize, channels = image_format
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(f"data.image_size must be (height, width) or (), got {size}")
    for field, value, choices in (
        ("resize", resize, ("crop", "stretch", "pad")),
        ("channels", channels, (0, 1, 3)),
        ("on_bad_image", on_bad_image, ("error", "skip")),
    ):
        if value not in choices:
            allowed = ", ".join(map(str, choices))
            raise UserError(f"data.{field} must be one of {allowed}, got {value!r}")
    if len(split) != 3 or min(split) < 0 or split[0] <= 0 or abs(sum(split) - 1) > 1e-6:
        raise UserError(
            "data.split must be the shares of train, validation and test, which sum to 1, "
            f"got {tuple(split)}"
        )
    if not 0 <= validation < 1:
        raise UserError(f"data.validation must be in [0, 1), got {validation}")
    if resident_limit < 0:
        raise UserError(f"data.resident_limit must be at least 0, got {resident_limit}")


def _load_digits(image_format: ImageFormat) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    ink, labels = load_digits(return_X_y=True)  # from 0 to 16
    images = np.round(np.asarray(ink) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    images = np.stack([fit_image(image, *image_format) for image in images])
    labels = np.asarray(labels, np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=_DIGITS_SPLIT_SEED
    )
    whole = ArraySplit(images, labels)
    splits: dict[str, Split] = {
        "train": whole.subset(np.sort(train)),
        "test": whole.subset(np.sort(test)),
    }
    return Dataset("digits", tuple("0123456789"), images.shape[1:], splits, skipped=0)


def _load(source: str, opened: Opened, on_bad_image: str, resident_limit: int) -> Dataset:
    splits, skipped = {}, 0
    for name, records in opened.records.items():
        splits[name], damaged = load_records(
            records,
            opened.image_shape,
            title=f"{source} {name}",
            on_bad_image=on_bad_image,
            resident_limit=resident_limit,
        )
        skipped += damaged
    return Dataset(source, opened.class_names, opened.image_shape, splits, skipped)


def _move(splits: dict[str, Split], name: str, share: float, seed: int, field: str) -> None:
    """Moves a stratified `share` of the train split into a new split `name`; 0 makes none."""
    if share == 0:
        return
    train = splits["train"]
    kept, held = hold_out(train.labels, share, seed)
    if not len(kept) or not len(held):
        raise UserError(f"{field} leaves {name} or train without images: there are {len(train)}")
    splits["train"], splits[name] = train.subset(kept), train.subset(held)
