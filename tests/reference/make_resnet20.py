"""How many of the first 2,000 test images of CIFAR-10 PyTorch's layers get right with ResNet-20.

    PYTHONPATH=. python tests/reference/make_resnet20.py ../shared/data

Needs torch==2.13.0 (CPU build). Printed 1835, and 0.043 as the smallest lead of the largest logit.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from flaxcnn.data.images import ImageFormat
from flaxcnn.data.tfds_source import open_tfds

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def forward(w, x):
    """ResNet-20 in the form of the weights: shortcuts without weights, the channels padded."""

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{leaf}"] for leaf in names), eps=1e-5)

    x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for number in range(3):
            block, stride = f"layer{stage}.{number}.", 2 if stage > 1 and number == 0 else 1
            y = F.conv2d(x, w[block + "conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, block + "bn1")), w[block + "conv2.weight"], padding=1)
            y = norm(y, block + "bn2")
            if x.shape != y.shape:
                side = y.shape[1] // 4
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
            x = F.relu(x + y)
    head = "linear" if "linear.weight" in w else "fc"
    return F.linear(x.mean((2, 3)), w[head + ".weight"], w[head + ".bias"])


def main(data: Path) -> None:
    """Counts; TFDS_DATA_DIR says where CIFAR-10 is."""
    weights = load_file(data / "weights" / "cifar10_resnet20.safetensors")
    records = open_tfds("cifar10", ImageFormat((), "crop", 0)).records["test"]
    images, labels = map(np.stack, zip(*records.read(np.arange(2000)), strict=True))
    x = ((images.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        logits = forward(weights, torch.from_numpy(x))
    two = logits.topk(2, 1).values
    print((logits.argmax(1).numpy() == labels).sum(), (two[:, 0] - two[:, 1]).min())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
