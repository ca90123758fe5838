"""Released weights of ResNet-20 give their released accuracy on CIFAR-10, to the image."""

import numpy as np
import pytest

import flaxcnn
from flaxcnn.data.images import ImageFormat
from flaxcnn.data.tfds_source import open_tfds
from flaxcnn.weights import convert, export, find_layout, read_tensors


# Of the first 2,000 images PyTorch's layers get as many right (tests/reference/make_resnet20.py).
@pytest.mark.parametrize(
    ("images", "right"), [(2_000, 1835), pytest.param(10_000, 9173, marks=pytest.mark.slow)]
)
def test_resnet20_on_cifar10(images, right, shared, tfds_dir):
    file = shared / "data" / "weights" / "cifar10_resnet20.safetensors"
    tensors = read_tensors(file)
    assert find_layout("cifar_resnet20", tensors) == "torchvision"
    variables = convert("cifar_resnet20", tensors, layout="torchvision")
    exported = export("cifar_resnet20", variables, layout="torchvision")
    assert set(exported) == {n for n in tensors if not n.endswith("num_batches_tracked")}
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])

    predictor = flaxcnn.load(file, "cifar_resnet20", batch_size=500)
    test = open_tfds("cifar10", ImageFormat((), "crop", 0)).records["test"]
    correct = 0
    for start in range(0, images, 500):
        pixels, labels = map(np.stack, zip(*test.read(np.arange(start, start + 500)), strict=True))
        correct += int((predictor(pixels).argmax(-1) == labels).sum())
    assert len(test) == 10_000
    assert correct == right
