"""The command `flaxcnn evaluate`: metrics of a run's checkpoint on a split of its data set."""

import argparse
import json
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training.inference import load_run


def run(args: argparse.Namespace) -> int:
    """Metrics of a run's checkpoint on a split of its data set."""
    trained_run = load_run(args.workdir, args.checkpoint)
    views = None if args.views is None else _parse_views(args.views)
    size = parse_size(args.image_size) if args.image_size else ()
    measured = trained_run.evaluate(
        args.split, views=views, image_size=size, resize=args.resize, source=args.source
    )
    task, figures = trained_run.task, measured.figures
    size = size or tuple(trained_run.facts.image_shape[:2])
    views = trained_run.config.data.views if views is None else views
    if args.json:
        how = {"split": args.split, "step": trained_run.step, "image_size": size, "views": views}
        print(json.dumps({**how, **figures, "report": measured.report}))
        return DONE
    entries = ",".join("=".join(map(str, entry)) for entry in views)
    print(
        f"{args.checkpoint} checkpoint, step {trained_run.step}, {args.split} split, "
        f"{size[0]}x{size[1]} pixels" + (f", views {entries}" if entries else "")
    )
    print(task.format(measured.report))
    name, images = task.monitor.name, len(next(iter(measured.arrays.values())))
    print(
        f"{args.split} {name} {figures[name]:.4f} · {images} images · "
        f"loss {figures['loss']:.4f} · step {trained_run.step} · {args.workdir}"
    )
    return DONE


def _parse_views(text: str) -> tuple[tuple[Any, ...], ...]:
    """`data.views` as written on the command line: "flip,shift=1", or "none"."""
    if text == "none":
        return ()
    pairs = [word.partition("=") for word in text.split(",")]
    return tuple(
        (name, int(value) if value.isdigit() else value) if equals else (name,)
        for name, equals, value in pairs
    )


def parse_size(text: str) -> tuple[int, ...]:
    """`--image-size` as written on the command line: "224,224"."""
    height, _, width = text.partition(",")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--image-size must be HEIGHT,WIDTH, got {text!r}")
    return int(height), int(width)
