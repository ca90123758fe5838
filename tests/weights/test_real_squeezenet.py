"""SqueezeNet 1.0 of the Deep Compression release, on photographs."""

import functools
import json

import jax
import numpy as np
from photographs import GOLDEN, TOLERANCE, WEIGHTS, find_best, load_photographs

from flaxcnn.weights import convert, export, find_layout, from_pretrained, read_tensors

NAME = "squeezenet1_0_caffe"


def test_photographs(shared):
    """The file wants blue first and 0..255, and has a network for RGB and 0..1 here."""
    file = shared / "data" / "weights" / WEIGHTS[NAME].file
    assert find_layout(NAME, read_tensors(file)) == "caffe"
    model, variables, preprocessing = from_pretrained(str(file), model_name=NAME)
    files, images, labels = load_photographs(shared / "data", NAME)
    rgb = (images + np.array([104, 117, 123], np.float32))[..., ::-1] / np.float32(255)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = np.asarray(apply(variables, preprocessing(rgb)))
    best = find_best(logits)
    right = best == labels[:, None]
    golden = json.loads(GOLDEN.read_text())[NAME]
    assert best[:, 0].tolist() == [golden[file]["classes"][0] for file in files]
    expected = np.array([golden[file]["logit"] for file in files])
    np.testing.assert_allclose(logits.max(1), expected, rtol=TOLERANCE)
    assert (right[:, 0].sum(), right.sum(), len(files)) == (30, 41, 48)


def test_weights_come_back(shared):
    tensors = read_tensors(shared / "data" / "weights" / WEIGHTS[NAME].file)
    back = export(NAME, convert(NAME, tensors, "caffe"), "caffe")
    np.testing.assert_array_equal(back["fire5/expand3x3.weight"], tensors["fire5/conv3x3_2.weight"])
    assert sum(tensor.size for tensor in back.values()) == 1_248_424
