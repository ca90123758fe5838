"""Writes preprocessing.json: what timm's transforms make of images, and of first kernels.

Run by hand where timm is installed (made with timm 1.0.31, torchvision 0.29.1, Pillow 13.0.0):
`python tests/reference/make_preprocessing.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.models import adapt_input_conv

FILE = Path(__file__).with_name("preprocessing.json")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = [  # (height, width) of the image, and words of `pretrained_cfg`
    ((37, 53), {"input_size": (3, 8, 8), "crop_pct": 0.875, "interpolation": "bicubic"}),
    ((53, 37), {"input_size": (3, 8, 8), "crop_pct": 0.7, "interpolation": "bilinear"}),
    ((37, 53), {"input_size": (3, 8, 8), "crop_pct": 0.95, "crop_mode": "squash"}),
    ((37, 53), {"input_size": (3, 7, 8), "crop_pct": 1.0, "crop_mode": "border"}),
    ((37, 53), {"input_size": (3, 6, 9), "crop_pct": 0.9, "interpolation": "lanczos"}),
    ((5, 4), {"input_size": (3, 8, 8), "crop_pct": 0.9, "interpolation": "bicubic"}),
    ((9, 9), {"input_size": (3, 8, 8), "crop_pct": 1.15, "interpolation": "nearest"}),
]


def main():
    images = []
    for (height, width), words in CASES:
        words = {"interpolation": "bilinear", "crop_mode": "center", **words}
        rng = np.random.default_rng(height * width)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        arguments = {**words, "mean": MEAN, "std": STD, "is_training": False}
        made = create_transform(**arguments, normalize=False)(Image.fromarray(pixels))
        whole = create_transform(**arguments)(Image.fromarray(pixels))
        images.append(
            {
                "image": [height, width],
                "config": {**words, "mean": MEAN, "std": STD},
                "pixels": made.permute(1, 2, 0).flatten().tolist(),
                "first": [round(float(x), 6) for x in whole[:, 0, 0]],
            }
        )
    kernel = torch.tensor(np.random.default_rng(0).random((2, 3, 1, 2), np.float32))
    kernels = {n: adapt_input_conv(n, kernel.clone()).flatten().tolist() for n in (1, 2, 3, 4, 7)}
    text = json.dumps({"images": images, "kernels": kernels}, separators=(",", ":"))
    FILE.write_text(
        text.replace('{"image"', '\n{"image"').replace('"kernels"', '\n"kernels"') + "\n"
    )


if __name__ == "__main__":
    main()
