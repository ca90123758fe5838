"""`flaxcnn visualize samples|channels|pixels|kernels`: pictures of images alone."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flaxcnn.analysis.kernels import KERNELS, filter_image
from flaxcnn.analysis.plots import draw_channels, draw_filtered, draw_pixels, draw_samples
from flaxcnn.commands.visualize import save
from flaxcnn.data.images import read_image
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE

_SAMPLE = (192, 192)  # pixels of a sample, cut to the middle


def run(args: argparse.Namespace) -> int:
    """Draws one picture and prints its name."""
    kinds: dict[str, Callable[[argparse.Namespace], Any]] = {
        "samples": _samples,
        "channels": lambda args: draw_channels(_read(args)),
        "pixels": _pixels,
        "kernels": _kernels,
    }
    save(kinds[args.kind](args), args.out)
    return DONE


def _read(args: argparse.Namespace) -> np.ndarray:
    """The only image."""
    if len(args.images) > 1:
        raise UserError(f"{args.kind} draws one image, and {len(args.images)} are given")
    return read_image(args.images[0], (), "crop", 0)


def _samples(args: argparse.Namespace) -> Any:
    images = [read_image(file, _SAMPLE, "crop", 0) for file in args.images]
    return draw_samples(images, [Path(file).stem for file in args.images])


def _pixels(args: argparse.Namespace) -> Any:
    image = _read(args)
    if args.at:
        try:
            row, column, height, width = map(int, args.at.split(","))
        except ValueError:
            raise UserError(f"--at {args.at}: four numbers are needed, with commas") from None
        image = image[row : row + height, column : column + width]
        if min(row, column) < 0 or image.shape[:2] != (height, width) or 0 in image.shape:
            raise UserError(f"--at {args.at}: there are no such pixels in {args.images[0]}")
    return draw_pixels(image)


def _kernels(args: argparse.Namespace) -> Any:
    image = _read(args)
    kernels: dict[str, Any] = dict(KERNELS)
    own: list[str] = args.kernel or []
    for number, text in enumerate(own, 1):
        try:
            rows = [list(map(float, row.replace(",", " ").split())) for row in text.split(";")]
        except ValueError:
            raise UserError(f'--kernel "{text}": rows of numbers are needed, with ;') from None
        kernels[f"own {number}" if len(own) > 1 else "own"] = rows
    results = {}
    for name, rows in kernels.items():
        ours = filter_image(image, rows)
        theirs = cv2.filter2D(image.astype(np.float32), -1, np.array(rows, np.float32))
        results[name] = {"flaxcnn": ours, "OpenCV": theirs.reshape(ours.shape)}
    return draw_filtered(image, results)
