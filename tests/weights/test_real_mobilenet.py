"""MobileNets of Google's TFLite files, BatchNorm folded into the convolutions, on photographs."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from photographs import GOLDEN, TOLERANCE, find_best, load_photographs, load_tensors

from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert

# TF-slim's name of a layer, Keras' of the convolution and of the BatchNorm after it.
NAMES = (
    (r"MobilenetV1/MobilenetV1/Conv2d_0", "conv1", "conv1_bn"),
    (r"MobilenetV1/MobilenetV1/Conv2d_(\d+)_depthwise", r"conv_dw_\1", r"conv_dw_\1_bn"),
    (r"MobilenetV1/MobilenetV1/Conv2d_(\d+)_pointwise", r"conv_pw_\1", r"conv_pw_\1_bn"),
    (r"MobilenetV1/Logits/Conv2d_1c_1x1", "conv_preds", None),
    (r"MobilenetV2/Conv", "Conv1", "bn_Conv1"),
    (r"MobilenetV2/expanded_conv/(\w+)", r"expanded_conv_\1", r"expanded_conv_\1_BN"),
    (r"MobilenetV2/expanded_conv_(\d+)/(\w+)", r"block_\1_\2", r"block_\1_\2_BN"),
    (r"MobilenetV2/Conv_1", "Conv_1", "Conv_1_bn"),
    (r"MobilenetV2/Logits/Conv2d_1c_1x1", "predictions", None),
)


def to_keras(tensors, epsilon):
    """Folded weights of TF-slim as those of Keras: BatchNorm with mean 0, variance 1 - epsilon."""
    renamed = {}
    for name in [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]:
        ((match, conv, norm),) = (
            (match, match.expand(conv), norm and match.expand(norm))
            for pattern, conv, norm in NAMES
            if (match := re.fullmatch(pattern, name))
        )
        # [out, h, w, in] to [h, w, in, out]; depthwise [1, h, w, C] to [h, w, C, 1]
        kernel = tensors[f"{name}.weight"].transpose(1, 2, 3, 0)
        bias = tensors[f"{name}.bias"]
        renamed[f"{conv}/kernel"] = kernel[0, 0] if conv == "predictions" else kernel
        if norm is None:
            renamed[f"{conv}/bias"] = bias
            continue
        one = np.ones_like(bias)
        renamed |= {
            f"{norm}/gamma": one,
            f"{norm}/beta": bias,
            f"{norm}/moving_mean": 0 * one,
            f"{norm}/moving_variance": (1 - epsilon) * one,
        }
    return renamed


@pytest.mark.parametrize(
    ("name", "counts"), [("mobilenet_v1_0.25_128", (23, 33)), ("mobilenet_v2_1.00_224", (45, 46))]
)
def test_photographs(name, counts, shared):
    model = create_model(name, num_classes=1001)
    tensors = to_keras(load_tensors(shared / "data", name), model.epsilon)
    variables = convert(name, tensors, "keras", num_classes=1001)
    files, images, labels = load_photographs(shared / "data", name)
    logits = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    best = find_best(logits)
    right = best == labels[:, None]
    golden = json.loads(GOLDEN.read_text())[name]
    assert best[:, 0].tolist() == [golden[file]["classes"][0] for file in files]
    expected = np.array([golden[file]["logit"] for file in files])
    np.testing.assert_allclose(logits.max(1), expected, rtol=TOLERANCE)
    assert (right[:, 0].sum(), right.sum()) == counts
