"""What the parity tests need: networks with the weights that the other library drew too."""

import functools

import numpy as np
from draw import draw_images, draw_weight
from flax import traverse_util
from networks import CLASSES, REFERENCES

from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, list_sources


@functools.lru_cache(maxsize=1)  # a network's logits and its training step are neighbours
def prepare(path):
    """Our network, its variables converted from drawn weights, their names, and the images."""
    reference = next(r for r in REFERENCES if r.path == path)
    model, sources = find_sources(reference)
    tensors = {}
    for source in sources.values():
        fan_in = int(np.prod(source.shape[:-1]))
        for name, shape in source.their_shapes.items():
            tensors[name] = draw_weight(name, shape, fan_in, *reference.scale)
    variables = convert(reference.model, tensors, reference.layout, **arguments(reference))
    images = draw_images(reference.batch, reference.side, reference.side, 3)
    return model, variables, sources, images


def arguments(reference):
    return {"num_classes": CLASSES, **reference.kwargs}


def find_sources(reference):
    """Our network and where its variables come from."""
    model = create_model(reference.model, **arguments(reference))
    return model, list_sources(reference.model, model, reference.layout)


def by_source(tree, sources):
    return {
        sources[path].name: float(leaf) for path, leaf in traverse_util.flatten_dict(tree).items()
    }


def compare(ours, expected):
    """Norms by source name against those in the order of sorted names."""
    assert len(ours) == len(expected)
    for name, value in zip(sorted(ours), expected, strict=True):
        tolerance = 1e-3 * value + 1e-6 * expected.max()
        assert abs(ours[name] - value) <= tolerance, f"{name}: {ours[name]} for {value}"


def relative_error(ours, expected):
    return np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()
