"""The command `flaxcnn`: its parser. Each command is a file of its own, imported when it runs."""

import argparse
import importlib
import os
import sys
from typing import Any

from flaxcnn import __version__
from flaxcnn.commands.compilation_cache import enable_cache
from flaxcnn.commands.visualize_arguments import add_kinds
from flaxcnn.data.choices import RESIZE
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, INTERRUPTED, MISTAKE


def make_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser(prog="flaxcnn", description="Classic CNNs in JAX.")
    parser.add_argument("--version", action="version", version=f"flaxcnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # Only named here: `main` hands their arguments on, as their flags are the fields of the config.
    commands.add_parser("train", help="Trains a network (see `flaxcnn train --help`).")
    commands.add_parser("estimate", help="What a run will cost (see `flaxcnn estimate --help`).")

    _add_looking(commands)
    _add_runs(commands)
    _add_compress(commands)
    _add_leaving(commands)
    _add_study(commands)
    _add_checks(commands)
    return parser


def _add(group: Any, name: str, text: str, module: str = "") -> argparse.ArgumentParser:
    command = group.add_parser(name, help=text, description=text)
    command.set_defaults(module=module or name)
    return command


def _add_looking(commands: Any) -> None:
    """What needs no run: list, summary, visualize, doctor."""
    command = _add(commands, "list", "Names of networks, or of optimizers, augmentations, ...")
    command.add_argument(
        "words",
        nargs="*",
        metavar="[KIND] [PATTERN]",
        help="models (if no kind is given), optimizers, schedules, losses, augmentations, views or "
        'configs; a part of a name, or a shell pattern such as "mnist*"',
    )
    command.add_argument("--verbose", action="store_true", help="models: sizes, inputs and sources")
    command.add_argument(
        "--pretrained", action="store_true", help="pretrained weights instead of networks"
    )
    command.add_argument(
        "--licence",
        metavar="NAME",
        help="--pretrained: those with this licence, or permissive: for any use",
    )

    command = _add(commands, "summary", "The layers of a network, and what each takes.")
    command.add_argument(
        "network", metavar="NAME|RUN", help="name of a network, or folder of a run"
    )
    command.add_argument(
        "--image-size", metavar="H,W", help="of the images (default: the network's, or the run's)"
    )
    command.add_argument("--batch", type=int, default=1, metavar="N", help="images in memory")
    command.add_argument("--format", default="text", choices=("text", "markdown", "json"))

    visualize = commands.add_parser("visualize", help="Pictures of what cannot be seen otherwise.")
    kinds = visualize.add_subparsers(dest="kind", required=True, metavar="KIND")
    text = "What a config's augmentation makes of images."
    command = _add(kinds, "augment", text, module="visualize")
    command.add_argument(
        "--config", required=True, help="name or file of a config with data.augment"
    )
    command.add_argument("--image", required=True, nargs="+", help="image files, taken in turn")
    command.add_argument(
        "--mask", default=(), nargs="+", metavar="PNG", help="of each image, which moves along"
    )
    command.add_argument("--out", default="augment.png", metavar="PNG", help="the picture")
    command.add_argument("--samples", type=int, default=8, metavar="N", help="images in a row")
    command.add_argument("--seed", type=int, default=0)
    add_kinds(kinds)
    _add(commands, "doctor", "What this installation is, and what is wrong with it.")


def _add_runs(commands: Any) -> None:
    """What a run has learnt: evaluate, report, predict."""
    command = _add(
        commands, "evaluate", "Metrics of a run's checkpoint on a split of its data set."
    )
    command.add_argument(
        "workdir", nargs="?", metavar="RUN", default=argparse.SUPPRESS, help="as --workdir"
    )
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
        choices=RESIZE,
        help="how images reach their size (default: as the config says)",
    )

    command = _add(commands, "report", "Finished runs as one HTML file that loads nothing.")
    command.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, side by side")
    command.add_argument("--out", metavar="HTML", help="the page (default: RUN/report.html)")
    command.add_argument("--json", metavar="FILE", help="its data as JSON, too, without pictures")

    command = _add(commands, "predict", "What a run says of image files, and of those in folders.")
    _add_run_arguments(command)
    command.add_argument(
        "--weights",
        default="",
        metavar="W",
        help="instead of a run: published weights (`flaxcnn list --pretrained`), such as "
        "resnet50.a1_in1k, hf://user/repo, or a file",
    )
    command.add_argument("--model", default="", metavar="NAME", help="whose network a file is for")
    command.add_argument(
        "--top", type=int, metavar="K", help="entries per image (default: 5; of detection 100)"
    )
    command.add_argument(
        "--resize",
        choices=RESIZE,
        help="how images reach their size (default: as the config, or the weights, say)",
    )
    command.add_argument(
        "--out",
        default="",
        metavar="DIR",
        help="a folder, made if needed, for each image with its answer drawn on it, and for "
        "predictions.json",
    )
    command.add_argument(
        "--frames", type=int, metavar="N", help="of a video or a camera: stop after so many"
    )
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files and folders; or one video file, or camera:0",
    )


def _add_compress(commands: Any) -> None:
    """Fewer bytes: compress."""
    command = _add(
        commands, "compress", "A network pruned, shared and Huffman coded into one small file."
    )
    _add_run_arguments(command)
    command.add_argument(
        "--weights", default="", metavar="W", help="instead of a run: as for predict"
    )
    command.add_argument("--model", default="", metavar="NAME", help="whose network a file is for")
    command.add_argument(
        "--sparsity",
        default="",
        metavar="S[,S...]",
        help="share of the weights that is pruned, 0.9; or rounds, each retrained: 0.8,0.9",
    )
    command.add_argument(
        "--bits", type=int, default=6, metavar="B", help="2^B shared values a layer (default: 6)"
    )
    command.add_argument(
        "--retrain", type=int, default=0, metavar="N", help="epochs after each round of pruning"
    )
    command.add_argument(
        "--finetune", type=int, default=0, metavar="N", help="epochs of the shared values"
    )
    command.add_argument(
        "--rate", type=float, default=0.01, metavar="R", help="learning rate of --retrain"
    )
    command.add_argument("out", metavar="OUT.fcz", help="the file")


def _add_leaving(commands: Any) -> None:
    """Networks that leave the house: export, benchmark, push."""
    command = _add(commands, "export", "A run's network as one file that works without flaxcnn.")
    command.add_argument("workdir", metavar="RUN", help="folder of a run of `flaxcnn train`")
    command.add_argument(
        "out",
        metavar="OUT",
        help="the file: .html (a page that computes the network), .stablehlo (for jax alone), "
        ".onnx, .safetensors (the weights), or .h5 (the weights, for Keras)",
    )
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument(
        "--weights",
        choices=("auto", "float32", "float16"),
        help=".html: kernels as they are, or rounded to 16 bits (default: auto, which rounds them "
        "if the page would be larger than 10 MB)",
    )
    command.add_argument("--title", help=".html: its title (default: the network and the run)")
    command.add_argument(
        "--layout",
        choices=("flaxcnn", "torchvision", "timm"),
        help=".safetensors: whose names and layout (default: flaxcnn)",
    )

    command = _add(
        commands, "benchmark", "How fast a run's network answers, here and in other formats."
    )
    command.add_argument("workdir", metavar="RUN", help="folder of a run of `flaxcnn train`")
    command.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="for each figure (default: 3)"
    )
    command.add_argument("--json", action="store_true", help="one line of JSON instead of a table")

    command = _add(
        commands, "push", "A finished run's weights to a repository of the Hugging Face hub."
    )
    command.add_argument("workdir", metavar="RUN", help="folder of a finished run")
    command.add_argument("repository", metavar="USER/REPOSITORY", help="made if it does not exist")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument(
        "--licence", default="", metavar="NAME", help="of the weights: mit, apache-2.0, ..."
    )
    command.add_argument("--private", action="store_true", help="if it is made: only for its owner")


def _add_study(commands: Any) -> None:
    """Several runs: study."""
    command = _add(
        commands, "study", "Trains every case of a study with every seed, and writes its report."
    )
    command.add_argument(
        "file",
        help="Python file whose get_study() returns a Study, or the name of one that comes with "
        "flaxcnn (`flaxcnn list configs`)",
    )
    command.add_argument("--quick", action="store_true", help="the study's own short form")
    command.add_argument("--workdir", help="folder of its runs (default: runs/studies/<name>)")
    command.add_argument("--report", metavar="DIR", help="folder of the report (default: workdir)")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, on CPU")


def _add_checks(commands: Any) -> None:
    """Whether bits are what they should be: reproduce, verify, diff."""
    command = _add(
        commands, "reproduce", "Trains 50 fixed steps and compares their bits with those recorded."
    )
    command.add_argument(
        "--record",
        metavar="FILE",
        help="add this machine's hash to a golden file (a clone's flaxcnn/golden/digits.json)",
    )
    command = _add(
        commands, "verify", "Does random stretches of a run again and compares bits and losses."
    )
    command.add_argument(
        "workdir", nargs="?", metavar="RUN", default=argparse.SUPPRESS, help="as --workdir"
    )
    command.add_argument("--workdir", metavar="RUN", help="folder of a run of `flaxcnn train`")
    command.add_argument(
        "--segments", default="5", metavar="N", help="stretches, or all of the run (default: 5)"
    )
    command.add_argument("--seed", type=int, help="of the choice of stretches (default: random)")
    command.add_argument("--json", action="store_true", help="the certificate instead of text")

    command = _add(
        commands, "diff", "The step, layer and tensor where two runs, or two traces, first differ."
    )
    command.add_argument(
        "paths",
        nargs="+",
        metavar="A B",
        help="two folders of runs, or two files of --record; with --record one run or config, "
        "which may be followed by --config.FIELD=VALUE",
    )
    command.add_argument(
        "--record",
        metavar="NPZ",
        help="write weights, activations and gradients of the first steps to a file",
    )
    command.add_argument("--steps", type=int, default=2, metavar="N", help="to record (default: 2)")
    command.add_argument(
        "--start", type=int, default=0, metavar="STEP", help="record from this checkpoint of a run"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="T",
        help="of traces: what differs by at most T of its array's largest value is the same",
    )
    command.add_argument("--all", action="store_true", help="every array that differs")
    command.add_argument("--json", action="store_true", help="one line of JSON instead of text")


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", metavar="RUN", help="folder of a run of `flaxcnn train`")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument("--json", action="store_true", help="one line of JSON instead of text")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit status is one of exit_status.py."""
    arguments = sys.argv[1:] if argv is None else argv
    command = arguments[0] if arguments else ""
    try:
        enable_cache()
        if command == "train":
            from flaxcnn.commands.train import train

            return train(arguments[1:])
        if command == "estimate":
            from flaxcnn.commands.estimate import estimate

            return estimate(arguments[1:])
        parser = make_parser()
        args, args.flags = parser.parse_known_args(arguments)
        if args.flags and command != "diff":  # which takes those of a config
            parser.error(f"unrecognized arguments: {' '.join(args.flags)}")
        if args.command in ("evaluate", "verify") and args.workdir is None:
            raise UserError("--workdir RUN is missing: the folder of a run of `flaxcnn train`")
        return importlib.import_module(f"flaxcnn.commands.{args.module}").run(args)
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
