"""Released weights of ResNet-20 give their released accuracy on CIFAR-10, to the image."""

import functools

import jax
import numpy as np
import pytest

from flaxcnn.data.images import ImageFormat
from flaxcnn.data.tfds_source import open_tfds
from flaxcnn.models import create_model
from flaxcnn.weights import convert, export, find_layout, read_tensors

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


# Of the first 2,000 images PyTorch's layers get as many right (tests/reference/make_resnet20.py).
@pytest.mark.parametrize(
    ("images", "right"), [(2_000, 1835), pytest.param(10_000, 9173, marks=pytest.mark.slow)]
)
def test_resnet20_on_cifar10(images, right, shared, tfds_dir):
    tensors = read_tensors(shared / "data" / "weights" / "cifar10_resnet20.safetensors")
    assert find_layout("cifar_resnet20", tensors) == "torchvision"
    variables = convert("cifar_resnet20", tensors, layout="torchvision")
    exported = export("cifar_resnet20", variables, layout="torchvision")
    assert set(exported) == {n for n in tensors if not n.endswith("num_batches_tracked")}
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])

    model = create_model("cifar_resnet20")
    predict = jax.jit(functools.partial(model.apply, train=False))
    test = open_tfds("cifar10", ImageFormat((), "crop", 0)).records["test"]
    correct = 0
    for start in range(0, images, 500):
        pixels, labels = map(np.stack, zip(*test.read(np.arange(start, start + 500)), strict=True))
        normalized = (pixels.astype(np.float32) / 255 - MEAN) / STD
        logits = predict(variables, normalized)
        correct += int((np.argmax(logits, -1) == labels).sum())
    assert len(test) == 10_000
    assert correct == right
