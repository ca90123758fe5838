"""What the parity tests share: networks with the weights that the other library drew too."""

import numpy as np
import pytest
from draw import draw_images, draw_weight
from flax import traverse_util
from networks import CLASSES, REFERENCES

from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, list_sources


def make_cases(references, is_long):
    """Cases of a test, those that take long marked `zoo`."""
    return pytest.mark.parametrize(
        "reference",
        [
            pytest.param(r, id=r.path.stem, marks=[pytest.mark.zoo] if is_long(r) else [])
            for r in references
        ],
    )


each_reference = make_cases(REFERENCES, lambda r: r.is_deep)
each_training_reference = make_cases(
    [r for r in REFERENCES if r.training], lambda r: r.has_long_step
)


def prepare(reference):
    """Our network, its variables converted from drawn weights, their names, and the images."""
    kwargs = {"num_classes": CLASSES, **reference.kwargs}
    model = create_model(reference.model, **kwargs)
    sources = list_sources(reference.model, model, reference.layout)
    tensors = {}
    for source in sources.values():
        fan_in = int(np.prod(source.shape[:-1]))
        for name, shape in source.their_shapes.items():
            tensors[name] = draw_weight(name, shape, fan_in, *reference.scale)
    variables = convert(reference.model, tensors, reference.layout, **kwargs)
    images = draw_images(reference.batch, reference.side, reference.side, 3)
    return model, variables, sources, images


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
