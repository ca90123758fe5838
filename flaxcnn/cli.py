"""The command `flaxcnn`: list, evaluate, predict, reproduce, doctor.

Training itself is `train.py`. Each command imports what it needs when it runs.
"""

import argparse
import json
import os
import sys

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
    means, examples = run.evaluate(args.split)
    trained = run.facts.train_images, run.facts.train_draws
    report = run.task.report(examples["true_label"], examples["label"], *trained)
    if args.json:
        print(json.dumps({"split": args.split, "step": run.step, **means, "report": report}))
        return 0
    print(f"{args.checkpoint} checkpoint, step {run.step}, {args.split} split")
    print(format_report(report))
    print(
        f"{args.split} accuracy {means['accuracy']:.4f} · {report['images']} images · "
        f"loss {means['loss']:.4f} · step {run.step} · {args.workdir}"
    )
    return 0


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

    def add(name, function):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    command = add("list", list_command)
    command.add_argument("pattern", nargs="?", default="*", help='shell pattern, as "mnist*"')
    command.add_argument("--verbose", action="store_true", help="sizes, inputs and sources")

    command = add("evaluate", evaluate_command)
    _add_run_arguments(command)
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))

    command = add("predict", predict_command)
    _add_run_arguments(command)
    command.add_argument("--top", type=int, default=5, metavar="K", help="classes per image")
    command.add_argument(
        "--resize",
        choices=("crop", "stretch", "pad"),
        help="how images reach the run's size (default: as the config says)",
    )
    command.add_argument("images", nargs="+", metavar="IMAGE")

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
