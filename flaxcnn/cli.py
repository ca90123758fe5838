"""The command `flaxcnn`: list, evaluate, predict, visualize, study, reproduce, doctor.

Training itself is `train.py`. Each command imports what it needs when it runs.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flaxcnn.errors import UserError


def list_command(args: argparse.Namespace) -> int:
    """Names of the networks, with their sizes under --verbose."""
    from flaxcnn.models.registry import list_models, variant

    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no network is called {args.pattern}; `flaxcnn list` shows all names")
    if not args.verbose:
        print("\n".join(names))
        return 0
    width = max(map(len, names))
    print(
        f"{'name':<{width}}  {'parameters':>11}  {'statistics':>10}  {'multiply-adds':>14}  "
        f"{'input':<9}  paper"
    )
    for name in names:
        v = variant(name)
        shape = "x".join(map(str, v.input_shape))
        source = f"{v.paper} ({v.year})" if v.year else v.paper
        print(
            f"{name:<{width}}  {v.params:>11,}  {v.statistics:>10,}  {v.macs:>14,}  "
            f"{shape:<9}  {source}"
        )
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Metrics of a run's checkpoint on a split of its data set."""
    from flaxcnn.tasks.classification import format_report
    from flaxcnn.training.inference import load_run

    run = load_run(args.workdir, args.checkpoint)
    views = None if args.views is None else _parse_views(args.views)
    size = _parse_size(args.image_size) if args.image_size else ()
    means, examples = run.evaluate(args.split, views=views, image_size=size, resize=args.resize)
    trained = run.facts.train_images, run.facts.train_draws
    report = run.task.report(examples["true_label"], examples["label"], *trained)
    size = size or tuple(run.facts.image_shape[:2])
    views = run.config.data.views if views is None else views
    if args.json:
        how = {"split": args.split, "step": run.step, "image_size": size, "views": views}
        print(json.dumps({**how, **means, "report": report}))
        return 0
    entries = ",".join("=".join(map(str, entry)) for entry in views)
    print(
        f"{args.checkpoint} checkpoint, step {run.step}, {args.split} split, "
        f"{size[0]}x{size[1]} pixels" + (f", views {entries}" if entries else "")
    )
    print(format_report(report))
    print(
        f"{args.split} accuracy {means['accuracy']:.4f} · {report['images']} images · "
        f"loss {means['loss']:.4f} · step {run.step} · {args.workdir}"
    )
    return 0


def _parse_views(text: str) -> tuple[tuple[Any, ...], ...]:
    """`data.views` as written on the command line: "flip,shift=1", or "none"."""
    if text == "none":
        return ()
    pairs = [word.partition("=") for word in text.split(",")]
    return tuple(
        (name, int(value) if value.isdigit() else value) if equals else (name,)
        for name, equals, value in pairs
    )


def _parse_size(text: str) -> tuple[int, ...]:
    height, _, width = text.partition(",")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--image-size must be HEIGHT,WIDTH, got {text!r}")
    return int(height), int(width)


def predict_command(args: argparse.Namespace) -> int:
    """The most probable classes of image files."""
    from flaxcnn.training.inference import load_run

    run = load_run(args.workdir, args.checkpoint)
    images = run.read_images(args.images, args.resize)
    results = []
    for file, probabilities in zip(args.images, run.probabilities(images), strict=True):
        order = (-probabilities).argsort(kind="stable")[: args.top]
        top = [
            {"class": run.facts.class_names[i], "probability": float(probabilities[i])}
            for i in order
        ]
        results.append({"image": file, "top": top})
    if args.json:
        print(json.dumps(results))
        return 0
    for result in results:
        print(result["image"])
        for entry in result["top"]:
            print(f"  {entry['probability']:7.2%}  {entry['class']}")
    return 0


def visualize_augment_command(args: argparse.Namespace) -> int:
    """What a config's augmentation makes of images: each entry alone, then all of them."""
    from flaxcnn.tasks.augment_pictures import draw_policy
    from flaxcnn.training.config_file import load_config

    data = load_config(args.config).data
    draw_policy(
        args.out,
        data.augment,
        args.image,
        image_size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        samples=args.samples,
        seed=args.seed,
        title=args.config,
    )
    print(args.out)
    return 0


def study_command(args: argparse.Namespace) -> int:
    """Trains every case of a study with every seed, and writes its report."""
    from flaxcnn.study import carry_out, plan_runs
    from flaxcnn.study_jobs import carry_out_side_by_side
    from flaxcnn.study_report import write_report
    from flaxcnn.training.config_file import run_file

    file = Path(args.file)
    study, text = run_file(file, "get_study")
    suffix = "-quick" if args.quick else ""
    workdir = Path(args.workdir or Path("runs", "studies", file.stem + suffix))
    runs = plan_runs(study, workdir, quick=args.quick)
    done = carry_out(runs) if args.jobs == 1 else carry_out_side_by_side(runs, args.jobs)
    if not done:
        print(f"stopped at a saved step; to go on, run the same command again ({workdir})")
        return 0
    jobs = f" --jobs {args.jobs}" if args.jobs != 1 else ""
    command = f"flaxcnn study {args.file}{' --quick' if args.quick else ''}{jobs}"
    folder = Path(args.report or workdir)
    path = write_report(study, runs, text or file.stem, command, folder, file.stem)
    print(f"{path.read_text()}\nin {path.parent}: {file.stem}.md, .json and pictures")
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    """Trains 50 fixed steps and compares them, bit for bit, with what was recorded."""
    from flaxcnn.reproduce import reproduce

    return reproduce(record=args.record)


def doctor_command(args: argparse.Namespace) -> int:
    """What this installation is, and what is wrong with it."""
    from flaxcnn.doctor import main

    return main()


def make_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser(prog="flaxcnn", description="Classic CNNs in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, group=commands):
        command = group.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    command = add("list", list_command)
    command.add_argument("pattern", nargs="?", default="*", help='shell pattern, as "mnist*"')
    command.add_argument("--verbose", action="store_true", help="sizes, inputs and sources")

    command = add("evaluate", evaluate_command)
    _add_run_arguments(command)
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument(
        "--views",
        metavar="LIST",
        help="average over these views: flip, shift=PIXELS, crops=SIZE, separated by commas, in "
        "order; or none (default: the config's data.views)",
    )
    command.add_argument(
        "--image-size",
        metavar="H,W",
        help="bring the images to another size than the run's, if the network takes it",
    )
    command.add_argument(
        "--resize",
        choices=("crop", "stretch", "pad"),
        help="how images reach their size (default: as the config says)",
    )

    command = add("predict", predict_command)
    _add_run_arguments(command)
    command.add_argument("--top", type=int, default=5, metavar="K", help="classes per image")
    command.add_argument(
        "--resize",
        choices=("crop", "stretch", "pad"),
        help="how images reach the run's size (default: as the config says)",
    )
    command.add_argument("images", nargs="+", metavar="IMAGE")

    visualize = commands.add_parser("visualize", help="Pictures of what cannot be seen otherwise.")
    kinds = visualize.add_subparsers(dest="kind", required=True, metavar="KIND")
    command = add("augment", visualize_augment_command, kinds)
    command.add_argument("--config", required=True, help="config file with data.augment")
    command.add_argument("--image", required=True, nargs="+", help="image files, taken in turn")
    command.add_argument("--out", default="augment.png", metavar="PNG", help="the picture")
    command.add_argument("--samples", type=int, default=8, metavar="N", help="images in a row")
    command.add_argument("--seed", type=int, default=0)

    command = add("study", study_command)
    command.add_argument("file", help="Python file whose get_study() returns a Study")
    command.add_argument("--quick", action="store_true", help="the study's own short form")
    command.add_argument("--workdir", help="folder of its runs (default: runs/studies/<name>)")
    command.add_argument("--report", metavar="DIR", help="folder of the report (default: workdir)")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, on CPU")

    command = add("reproduce", reproduce_command)
    command.add_argument(
        "--record", action="store_true", help="write this machine's hash into the golden file"
    )
    add("doctor", doctor_command)
    return parser


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", required=True, help="folder of a run of train.py")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument("--json", action="store_true", help="one line of JSON instead of text")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 success, 1 a check that failed, 2 a mistake, told in one line."""
    args = make_parser().parse_args(argv)
    try:
        return args.function(args)
    except UserError as error:
        print(f"flaxcnn {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of `flaxcnn list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
