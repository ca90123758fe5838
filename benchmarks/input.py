"""Times how fast JPEG files become batches: our streaming feeder and PyTorch's DataLoader.

    python benchmarks/input.py --images PHOTOS --json input.json

`--images` is a folder of photographs, at least 500x375 or enlarged to it; `--files` JPEG files of
that size (quality 90) are made from crops of them in a temporary folder. In each round each side
reads `--batches` of them, in its own random order, with the same number of worker processes and in
batches of the same size; those before, while processes start, are not counted. A rate is images
over the processor seconds of all processes, which is images per second and core, and hardly
depends on what else the machine does; the rate by the clock stands beside it. A last column is the
decoding alone, in one process without any feeder. Ratios are medians over rounds of the ratio
within a round.

PyTorch's side is what its tutorials do: PIL's image as RGB, resized (bilinear) so that its shorter
side fits, its centre as an array of bytes. Neither side augments, nor makes floats.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

COLUMNS = (
    "| px | flaxcnn | PyTorch | reading | reading whole | / PyTorch, per core | by the clock |"
)
BATCH = 64
SIZE = (500, 375)  # width, height


def make_files(photos: list[Path], folder: Path, count: int) -> None:
    """JPEG files in ten classes, each another crop of a photograph."""
    random = np.random.default_rng(0)
    for index in range(count):
        image = Image.open(photos[index % len(photos)]).convert("RGB")
        scale = max(SIZE[0] / image.width, SIZE[1] / image.height) * random.uniform(1, 1.3)
        image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
        left, top = (
            int(random.integers(whole - part + 1))
            for whole, part in zip(image.size, SIZE, strict=True)
        )
        path = folder / f"class{index % 10}" / f"{index:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.crop((left, top, left + SIZE[0], top + SIZE[1])).save(path, quality=90)


def ours(folder: Path, side: int, workers: int) -> Callable[[int], Iterator[int]]:
    """A round of flaxcnn's streaming feeder: yields the images of each batch."""
    from flaxcnn.data.feeders import Streaming
    from flaxcnn.data.imbalance import Draws
    from flaxcnn.data.plans import TrainPlan
    from flaxcnn.data.sources import load_dataset

    # All but one image of each class are training images.
    dataset = load_dataset(
        f"folder:{folder}",
        image_size=(side, side),
        channels=3,
        split=(0.99, 0, 0.01),
        resident_limit=0,
    )
    split = dataset.splits["train"]
    draws = Draws(split.strata, np.bincount(split.strata))

    def round_of(seed: int) -> Iterator[int]:
        plan = TrainPlan(draws, BATCH, steps_per_call=1, epochs=1, seed=seed)
        for images, _ in Streaming(split, workers).feed(plan):
            yield images.shape[0] * images.shape[1]

    return round_of


class Photos:
    """A dataset as PyTorch's DataLoader takes it."""

    def __init__(self, files: list[Path], side: int):
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        side = self.side
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        scale = side / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        pixels = np.array(image.crop((left, top, left + side, top + side)))
        return torch.from_numpy(pixels), index % 10


def theirs(files: list[Path], side: int, workers: int) -> Callable[[int], Iterator[int]]:
    """A round of PyTorch's DataLoader."""
    import torch
    from torch.utils.data import DataLoader

    def round_of(seed: int) -> Iterator[int]:
        torch.manual_seed(seed)
        data: Any = Photos(files, side)
        loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)
        for images, _ in loader:
            yield len(images)

    return round_of


def decoding(files: list[Path], side: int, fast: bool) -> Callable[[int], Iterator[int]]:
    """Our reading of files alone, in this process."""
    from flaxcnn.data.images import read_image

    def round_of(seed: int) -> Iterator[int]:
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            for file in chunk:
                read_image(file, (side, side), "crop", 3, fast=fast)
            yield len(chunk)

    return round_of


def cpu_seconds() -> float:
    """Of this process and its children."""
    this = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (this, *this.children(recursive=True)))


def measure(round_of: Iterator[int], skipped: int, batches: int) -> tuple[float, float]:
    """Images per processor second and per second, after the first `skipped` batches."""
    for _ in range(skipped):
        next(round_of)
    start, spent = time.perf_counter(), cpu_seconds()
    images = sum(next(round_of) for _ in range(batches))
    rates = images / (cpu_seconds() - spent), images / (time.perf_counter() - start)
    round_of.close()  # pyright: ignore[reportAttributeAccessIssue] (a generator)
    return rates


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 96])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=30, help="of 64, of a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    workers, found = arguments.workers, []
    photos = sorted(arguments.images.rglob("*.jp*g"))
    with tempfile.TemporaryDirectory() as folder:
        make_files(photos, Path(folder), arguments.files)
        files = sorted(Path(folder).rglob("*.jpg"))
        print(COLUMNS)
        for side in arguments.sides:
            sides = {
                "flaxcnn": (ours(Path(folder), side, workers), 4 * workers),
                "PyTorch": (theirs(files, side, workers), 4 * workers),
                "reading": (decoding(files, side, fast=True), 1),
                "reading whole": (decoding(files, side, fast=False), 1),
            }
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
            for index in range(arguments.rounds):
                for name, (round_of, skipped) in sides.items():
                    rates[name].append(measure(round_of(index), skipped, arguments.batches))
            found.append({"side": side, "workers": workers, "per core, by the clock": rates})
            pairs = list(zip(rates["flaxcnn"], rates["PyTorch"], strict=True))
            cells = [f"{statistics.median(a for a, _ in rate):,.0f}" for rate in rates.values()]
            cells += [f"{statistics.median(a[i] / b[i] for a, b in pairs):.2f}" for i in (0, 1)]
            print(f"| {side} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
