"""A data set of which only the header is read: enough to know what a run will cost."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxcnn.data.images import ImageFormat
from flaxcnn.data.imbalance import subsample
from flaxcnn.data.sources import Dataset
from flaxcnn.data.splits import Split, hold_out
from flaxcnn.errors import UserError
from flaxcnn.training.config import Config
from flaxcnn.training.parts import load_data

Labels = Mapping[str, Any]  # by split a class for each image, [N]
Header = tuple[tuple[str, ...], tuple[int, int, int], Labels]

# Images of train and test, for sets that are not prepared here yet.
_PUBLISHED = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "kmnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn_cropped": (73_257, 26_032),
    "imagenet2012": (1_281_167, 50_000),
}


@dataclass(frozen=True)
class UnreadSplit:
    """`strata` int32 [N], without images. What `load` gives is one example, whatever is asked.

    `example` is an image uint8 [1, H, W, C] and what belongs to it, with the same leading axis.
    """

    strata: np.ndarray
    example: tuple[np.ndarray, Any]

    def __len__(self) -> int:
        return len(self.strata)

    def load(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """The example."""
        return self.example

    def subset(self, indices: np.ndarray) -> "UnreadSplit":
        """See `flaxcnn.data.splits.Split`."""
        return UnreadSplit(self.strata[indices], self.example)


def make_unread(
    source: str, class_names: tuple[str, ...], image_shape: tuple[int, int, int], labels: Labels
) -> Dataset:
    """A data set with these labels by split; its images are black."""
    example = np.zeros((1, *image_shape), np.uint8), np.zeros(1, np.int32)
    splits: dict[str, Split] = {
        name: UnreadSplit(np.asarray(of_split, np.int32), example)
        for name, of_split in labels.items()
    }
    return Dataset(source, class_names, image_shape, splits, skipped=0, version="")


def forget_images(dataset: Dataset) -> Dataset:
    """The data set with one example of each split instead of all its images."""
    splits: dict[str, Split] = {
        name: UnreadSplit(split.strata, split.load(np.arange(1)))
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def open_unread(config: Config) -> Dataset:
    """The config's data set without its images where its files say what they are without decoding.

    That is so of labelled images of tfds, whose classes are taken to be equally frequent, and of
    folders; any other set is read as for training. Raises UserError for what is not there.
    """
    data = config.data
    kind, _, name = data.source.partition(":")
    image_format = ImageFormat(tuple(data.image_size), data.resize, data.channels)
    if config.task.name != "classification":
        return load_data(config)
    if kind == "tfds" and name:
        header = _open_tfds(name, image_format)
    elif kind == "folder" and name:
        header = _open_folder(name, image_format)
    else:
        return load_data(config)
    dataset = make_unread(data.source, *header)
    if not {"train", "all"} & dataset.splits.keys():
        raise UserError(f"data.source: {data.source} has no train split")
    splits = _divide(dataset.splits, config)
    shares = data.balance.subsample.to_dict()
    splits["train"] = subsample(splits["train"], dataset.class_names, shares, config.seed)
    return dataclasses.replace(dataset, splits=splits)


def _open_tfds(name: str, image_format: ImageFormat) -> Header:
    from flaxcnn.data.tfds_source import read_header  # loads tfds only where it is needed

    class_names, shape, counts = read_header(name, image_format)
    if not counts:
        published = _PUBLISHED.get(name.partition(":")[0])
        if published is None:
            raise UserError(
                f"data.source: tfds:{name} is not prepared here, so how many images it has is not "
                "known; `flaxcnn train` prepares it"
            )
        counts = dict(zip(("train", "test"), published, strict=True))
    labels = {split: np.arange(count) % len(class_names) for split, count in counts.items()}
    return class_names, shape, labels


def _open_folder(path: str, image_format: ImageFormat) -> Header:
    from flaxcnn.data.folder import open_folder

    opened = open_folder(path, image_format)
    labels = {split: records.labels() for split, records in opened.records.items()}
    return opened.class_names, opened.image_shape, labels


def _divide(splits: dict[str, Split], config: Config) -> dict[str, Split]:
    """As training divides a folder without splits, and holds out validation where there is none."""
    data = config.data
    shares = {"validation": data.validation}
    if "all" in splits:
        train, held, test = data.split
        shares = {"test": test, "validation": held / (train + held)}
        splits = {"train": splits["all"]}
    for name, share in shares.items():
        if name not in splits and share:
            kept, held = hold_out(splits["train"].strata, share, config.seed)
            splits |= {name: splits["train"].subset(held), "train": splits["train"].subset(kept)}
    return splits
