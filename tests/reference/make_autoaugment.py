"""Writes the pairs of operations of torchvision's AutoAugment to autoaugment.json.

    python tests/reference/make_autoaugment.py

Needs the packages of make.py. {"cifar10": [[[name, probability, level or null] x 2] x 25], ...}
"""

import json
from pathlib import Path

from torch_models import define_missing_operators

define_missing_operators()

from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # noqa: E402

tables = {
    name: AutoAugment(policy).policies
    for name, policy in (
        ("cifar10", AutoAugmentPolicy.CIFAR10),
        ("imagenet", AutoAugmentPolicy.IMAGENET),
    )
}
Path(__file__).with_name("autoaugment.json").write_text(json.dumps(tables) + "\n")
