"""Writes MNIST digits on a canvas with clutter, and a CSV of the box around each.

python docs/make_mnist_scenes.py OUT

Each scene is 48x48: four 8x8 pieces of other digits (as in Mnih et al. 2014, arXiv:1406.6247,
section 4.1.2), and a digit of 18 to 28 pixels pasted over them at a random place. 50,000 of the
training digits are for training, 1,000 others for validation, and 2,000 of the test digits for the
test. OUT then is a data source, `boxes:OUT`. Needs tfds's MNIST (TFDS_DATA_DIR).
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

SIDE, PIECE, PIECES = 48, 8, 4
SPLITS = {
    "train": ("train", 0, 50_000),
    "validation": ("train", 50_000, 51_000),
    "test": ("test", 0, 2_000),
}


def draw_scene(digits: np.ndarray, index: int, rng: np.random.Generator) -> tuple:
    """A scene uint8 [SIDE, SIDE] of digit `index`, and (left, top, right, bottom) of its ink."""
    scene = np.zeros((SIDE, SIDE), np.uint8)
    for other in rng.integers(0, len(digits), PIECES):
        y, x = rng.integers(4, 28 - PIECE - 4, 2)
        piece = digits[other, y : y + PIECE, x : x + PIECE]
        top, left = rng.integers(0, SIDE - PIECE, 2)
        part = scene[top : top + PIECE, left : left + PIECE]
        np.maximum(part, piece, out=part)
    side = int(rng.integers(18, 29))
    digit = cv2.resize(digits[index], (side, side), interpolation=cv2.INTER_AREA)
    top, left = rng.integers(0, SIDE - side + 1, 2)
    scene[top : top + side, left : left + side] = digit  # pasted over what was there
    rows, columns = np.flatnonzero((digit > 64).any(1)), np.flatnonzero((digit > 64).any(0))
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return scene, box


def main(out: Path) -> None:
    """Writes all splits; seed 0."""
    rows = []
    for split, (source, start, stop) in SPLITS.items():
        data = tfds.data_source("mnist", split=source)
        examples = [data[i] for i in range(start, stop)]
        digits = np.stack([example["image"][..., 0] for example in examples])
        rng = np.random.default_rng([0, list(SPLITS).index(split)])
        (out / split).mkdir(parents=True, exist_ok=True)
        for index, example in enumerate(examples):
            scene, box = draw_scene(digits, index, rng)
            name = f"{split}/{index:05}.png"
            cv2.imwrite(str(out / name), scene)
            rows.append((name, example["label"], *box, split))
    with open(out / "boxes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class", "left", "top", "right", "bottom", "split"))
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
