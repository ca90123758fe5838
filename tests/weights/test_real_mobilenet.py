"""MobileNets of Google's TFLite files, BatchNorm folded into the convolutions, on photographs."""

import functools
import json

import jax
import numpy as np
import pytest
from photographs import GOLDEN, TOLERANCE, WEIGHTS, find_best, load_photographs

from flaxcnn.models import create_model
from flaxcnn.weights import convert, export, find_layout, read_tensors


@pytest.mark.parametrize(
    ("name", "counts"), [("mobilenet_v1_0.25_128", (23, 33)), ("mobilenet_v2_1.00_224", (45, 46))]
)
def test_photographs(name, counts, shared):
    model = create_model(name, num_classes=1001)
    tensors = read_tensors(shared / "data" / "weights" / WEIGHTS[name].file)
    assert find_layout(name, tensors) == "tflite"
    variables = convert(name, tensors, "tflite", num_classes=1001)
    for back, tensor in export(name, variables, "tflite", num_classes=1001).items():
        np.testing.assert_array_equal(tensor, tensors[back])
    files, images, labels = load_photographs(shared / "data", name)
    logits = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    best = find_best(logits)
    right = best == labels[:, None]
    golden = json.loads(GOLDEN.read_text())[name]
    assert best[:, 0].tolist() == [golden[file]["classes"][0] for file in files]
    expected = np.array([golden[file]["logit"] for file in files])
    np.testing.assert_allclose(logits.max(1), expected, rtol=TOLERANCE)
    assert (right[:, 0].sum(), right.sum()) == counts
