"""The command `flaxcnn`: train, list, evaluate, predict, visualize, study, reproduce, doctor.

Each command imports what it needs when it runs; `train` is in train_command.py.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flaxcnn import __version__
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, INTERRUPTED, MISTAKE


def list_command(args: argparse.Namespace) -> int:
    """Names of networks, with sizes under --verbose; optimizers, augmentations, ..."""
    from flaxcnn.list_command import list_choices

    print(list_choices(args.words, verbose=args.verbose))
    return DONE


def evaluate_command(args: argparse.Namespace) -> int:
    """Metrics of a run's checkpoint on a split of its data set."""
    from flaxcnn.tasks.classification import format_report
    from flaxcnn.training.inference import load_run

    run = load_run(args.workdir, args.checkpoint)
    views = None if args.views is None else _parse_views(args.views)
    size = _parse_size(args.image_size) if args.image_size else ()
    means, examples = run.evaluate(
        args.split, views=views, image_size=size, resize=args.resize, source=args.source
    )
    trained = run.facts.train_images, run.facts.train_draws
    report = run.task.report(examples["true_label"], examples["label"], *trained)
    size = size or tuple(run.facts.image_shape[:2])
    views = run.config.data.views if views is None else views
    if args.json:
        how = {"split": args.split, "step": run.step, "image_size": size, "views": views}
        print(json.dumps({**how, **means, "report": report}))
        return DONE
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


def _parse_size(text: str) -> tuple[int, ...]:
    height, _, width = text.partition(",")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--image-size must be HEIGHT,WIDTH, got {text!r}")
    return int(height), int(width)


def predict_command(args: argparse.Namespace) -> int:
    """The most probable classes of image files, and of those in folders."""
    from flaxcnn.predict_command import predict

    return predict(args)


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
    return DONE


def study_command(args: argparse.Namespace) -> int:
    """Trains every case of a study with every seed, and writes its report."""
    from flaxcnn.study import carry_out, plan_runs
    from flaxcnn.study_jobs import carry_out_side_by_side
    from flaxcnn.study_report import write_report
    from flaxcnn.training.config_file import find_file, run_file
    from flaxcnn.training.stop_signal import StopSignal

    file = find_file(args.file, "study")
    study, text = run_file(file, "get_study")
    suffix = "-quick" if args.quick else ""
    workdir = Path(args.workdir or Path("runs", "studies", file.stem + suffix))
    runs = plan_runs(study, workdir, quick=args.quick)
    with StopSignal() as signals:
        done = carry_out(runs) if args.jobs == 1 else carry_out_side_by_side(runs, args.jobs)
    if not done:
        print(f"stopped at a saved step; to go on, run the same command again ({workdir})")
        return signals.status
    jobs = f" --jobs {args.jobs}" if args.jobs != 1 else ""
    command = f"flaxcnn study {args.file}{' --quick' if args.quick else ''}{jobs}"
    folder = Path(args.report or workdir)
    text = text or file.stem
    path = write_report(study, runs, text, command, folder, file.stem, quick=args.quick)
    print(f"{path.read_text()}\nin {path.parent}: {file.stem}.md, .json and pictures")
    return DONE


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
    parser.add_argument("--version", action="version", version=f"flaxcnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, group=commands):
        command = group.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    # Only named here: `main` hands its arguments on, as its flags are the fields of the config.
    commands.add_parser("train", help="Trains a network (see `flaxcnn train --help`).")

    command = add("list", list_command)
    command.add_argument(
        "words",
        nargs="*",
        metavar="[KIND] [PATTERN]",
        help="models (if no kind is given), optimizers, schedules, losses, augmentations, views or "
        'configs; a part of a name, or a shell pattern such as "mnist*"',
    )
    command.add_argument("--verbose", action="store_true", help="models: sizes, inputs and sources")

    command = add("evaluate", evaluate_command)
    _add_run_arguments(command)
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument(
        "--source", help="where the run's data set is by now (folder:PATH), if it has been moved"
    )
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
    command.add_argument("images", nargs="+", metavar="IMAGE", help="files and folders")

    visualize = commands.add_parser("visualize", help="Pictures of what cannot be seen otherwise.")
    kinds = visualize.add_subparsers(dest="kind", required=True, metavar="KIND")
    command = add("augment", visualize_augment_command, kinds)
    command.add_argument(
        "--config", required=True, help="name or file of a config with data.augment"
    )
    command.add_argument("--image", required=True, nargs="+", help="image files, taken in turn")
    command.add_argument("--out", default="augment.png", metavar="PNG", help="the picture")
    command.add_argument("--samples", type=int, default=8, metavar="N", help="images in a row")
    command.add_argument("--seed", type=int, default=0)

    command = add("study", study_command)
    command.add_argument(
        "file",
        help="Python file whose get_study() returns a Study, or the name of one that comes with "
        "flaxcnn (`flaxcnn list configs`)",
    )
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
    command.add_argument("--workdir", required=True, help="folder of a run of `flaxcnn train`")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument("--json", action="store_true", help="one line of JSON instead of text")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit status is one of exit_status.py."""
    arguments = sys.argv[1:] if argv is None else argv
    command = arguments[0] if arguments else ""
    try:
        if command == "train":
            from flaxcnn.train_command import train

            return train(arguments[1:])
        args = make_parser().parse_args(arguments)
        return args.function(args)
    except UserError as error:
        print(f"flaxcnn {command}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"flaxcnn {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of `flaxcnn list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


if __name__ == "__main__":
    sys.exit(main())
