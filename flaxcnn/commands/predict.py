"""The command `flaxcnn predict`: what a run, or a published network, says of image files."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flaxcnn.commands.predict_video import is_video, run_video
from flaxcnn.data.images import FILE_FORMATS, read_image
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, FAILED
from flaxcnn.training.inference import load, load_run
from flaxcnn.training.predictor import Predictor


def run(args: argparse.Namespace) -> int:
    """Prints the answers of each batch as they come; exit status 1 if a file had to be skipped.

    Those are named at the end. Raises UserError if not one could be read.
    """
    if args.top is not None and args.top < 1:
        raise UserError(f"--top must be at least 1, got {args.top}")
    if any(map(is_video, args.images)):
        return run_video(args, _load(args))
    files = list(_find_files(args.images))
    predictor, bad, told = _load(args), [], []
    task, out = predictor.task, _Folder(args.out) if args.out else None
    for file, answer in predictor.predict(files, args.resize):
        if isinstance(answer, UserError):
            bad.append(str(answer))
            continue
        top = task.describe(answer, args.top or task.listed)
        more = {"entropy": _entropy(answer)} if args.weights and top else {}
        entry = {"image": str(file), "top": top, **more}
        if out:
            drawn = task.annotate(read_image(file, (), "crop", 0), answer)
            if drawn is not None:
                entry["picture"] = out.save(file, Image.fromarray(drawn))
            if mask := task.mask(answer):
                entry["mask"] = out.save(file, mask, "masks")
        if args.json:
            print(", " if told else "[", json.dumps(entry), sep="", end="")
        else:
            lines = [f"  {task.format_entry(line)}" for line in top]
            if more:
                lines.append(f"  entropy {more['entropy']:.2f} of {math.log(len(answer)):.2f}")
            print(file, *lines, sep="\n", flush=True)
            if not top:
                print(f"  {task.nothing}")
        told.append(entry)
    if not told:
        more = f" (and {len(bad) - 1} more files could not be read)" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    if args.json:
        print("]")
    if out:
        (out.path / "predictions.json").write_text(json.dumps(told, indent=1) + "\n")
    if bad:
        print(f"flaxcnn predict: skipped {len(bad)} of {len(files)} files:", file=sys.stderr)
        print(*(f"  {line}" for line in bad), sep="\n", file=sys.stderr)
    return FAILED if bad else DONE


class _Folder:
    """Where pictures go: NAME.png, or NAME-2.png where there is one, and masks/NAME.png."""

    def __init__(self, path: str):
        self.path, self._names = Path(path), set[str]()
        self._make(self.path)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: {error.strerror}") from error

    def save(self, file: str | Path, image: Image.Image, folder: str = "") -> str:
        """Writes an image that is about `file`; returns its name."""
        stem, number = Path(folder, Path(file).stem), 1
        self._make(self.path / folder)
        name = f"{stem}.png"
        while name in self._names:
            number += 1
            name = f"{stem}-{number}.png"
        self._names.add(name)
        try:
            image.save(self.path / name)
        except OSError as error:
            raise UserError(f"--out {self.path / name}: {error.strerror}") from error
        return name


def _load(args: argparse.Namespace) -> Predictor:
    """The predictor of a run, or of published weights, which needs none."""
    if args.workdir:
        if args.weights or args.model:
            raise UserError(
                "--workdir is a run: --model and --weights are for networks without one"
            )
        return load_run(args.workdir, args.checkpoint).predictor
    if not args.weights:
        raise UserError(
            "--workdir RUN is missing: the folder of a run of `flaxcnn train`; or --weights, of a "
            "published network"
        )
    return load(args.weights, args.model)


def _entropy(probabilities: np.ndarray) -> float:
    """In nats: 0 where one class is certain, the logarithm of their number where all are alike."""
    positive = np.float64(probabilities[probabilities > 0])
    return float(-(positive * np.log(positive)).sum())


def _find_files(paths: Sequence[str]) -> Iterator[str]:
    """The files themselves, and the images in folders and their folders, in order of name."""
    formats = Image.registered_extensions()
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if formats.get(os.path.splitext(name)[1].lower()) in FILE_FORMATS
            and not name.startswith(".")
        ]
        if not found:
            raise UserError(f"{path} holds no images")
        yield from sorted(found)
