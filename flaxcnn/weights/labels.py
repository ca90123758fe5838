"""Names of the classes that pretrained weights know."""

import functools
import json
from importlib import resources

from flaxcnn.errors import UserError


@functools.cache
def class_names(classes: str) -> tuple[str, ...]:
    """The names of a data set's classes, in the order of the logits; "imagenet1k" has 1,000.

    Raises UserError for another.
    """
    return tuple(name for _, name in _read(classes))


@functools.cache
def wordnet_ids(classes: str) -> tuple[str, ...]:
    """The WordNet ids ("n01440764") of the same classes, by which folders of images are called."""
    return tuple(wordnet_id for wordnet_id, _ in _read(classes))


def _read(classes: str) -> list[tuple[str, str]]:
    if classes != "imagenet1k":
        raise UserError(f"no class names of {classes!r}: imagenet1k")
    text = resources.files("flaxcnn.weights").joinpath("imagenet_classes.json").read_text()
    return json.loads(text)
