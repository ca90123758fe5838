"""The command `flaxcnn compress`: a network pruned, shared and Huffman coded into one file."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flaxcnn.commands.compress_stages import Plan, compress
from flaxcnn.compression.encode import encode
from flaxcnn.compression.table import format_table, make_table
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training import Config
from flaxcnn.training.inference import TrainedRun, load_run
from flaxcnn.weights.preprocessing import Preprocessing
from flaxcnn.weights.pretrained import Located, load_variables

SUFFIX = ".fcz"


def run(args: argparse.Namespace) -> int:
    """Writes the file, and prints its bytes by layer and stage."""
    out = Path(args.out)
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a compressed network is a file called *{SUFFIX}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    plan = Plan(
        _parse_sparsity(args.sparsity),
        args.bits,
        args.retrain,
        args.finetune,
        args.rate,
    )
    folder = out.with_suffix(".stages").absolute()
    if args.workdir:
        trained, config = _open_run(args)
        before = jax.device_get(dict(trained.variables))
        describing = describe_run(trained)
        measure = trained
    else:
        before, describing = _open_weights(args)
        config, measure = Config(), None
    after = compress(before, plan, config, folder, describing)
    encoded = encode(after, describing)
    _replace(out, encoded.data)
    rows = make_table(before, after, encoded)
    figures = {} if measure is None else _compare(measure, after)
    total = rows[-1]
    if args.json:
        table = [row._asdict() for row in rows]
        print(json.dumps({"file": str(out), "bytes": total.coded, **figures, "table": table}))
        return DONE
    print(format_table(rows))
    for name, (old, new) in figures.items():
        print(f"{name} {old:.4f} before, {new:.4f} after")
    print(f"{out}: {total.coded:,} bytes, {total.float32 / total.coded:.1f} times smaller")
    return DONE


def _parse_sparsity(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"--sparsity must be shares such as 0.9 or 0.8,0.9, got {text!r}") from None
    return shares


def _open_run(args: argparse.Namespace) -> tuple[TrainedRun, Config]:
    """The run, and the config of one that starts with its weights."""
    if args.weights or args.model:
        raise UserError("--workdir is a run: --model and --weights are for networks without one")
    trained = load_run(args.workdir, args.checkpoint)
    if trained.config.task.name != "classification":
        raise UserError(f"{args.workdir} is a run of {trained.config.task.name}, not of classes")
    weights = f"run:{trained.workdir.path.absolute()},checkpoint={args.checkpoint}"
    model = dataclasses.replace(trained.config.model, weights=weights)
    return trained, dataclasses.replace(trained.config, model=model)


def _open_weights(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Published weights, which are compressed without retraining."""
    if not args.weights:
        raise UserError("--workdir RUN is missing: the folder of a run; or --weights W")
    if args.retrain or args.finetune:
        raise UserError("--retrain and --finetune need --workdir RUN, whose data they train on")
    variables, located = load_variables(args.weights, args.model)
    return variables, describe_weights(located)


def describe_run(run: TrainedRun) -> dict[str, Any]:
    """What a file says of a run's network, in the words of `flaxcnn push`'s config.json."""
    reading = run.preprocessing
    # A run whose images had one size takes no other; whoever loads its network may.
    reading = dataclasses.replace(reading, resize=reading.resize or run.config.data.resize)
    kwargs = {**run.config.model.kwargs}
    kwargs |= dict(run.facts.start.kwargs) if run.facts.start else {}
    names = run.facts.class_names
    classes: Any = getattr(run.model, "num_classes", len(names))
    return _describe(run.config.model.name, classes, kwargs, reading, names)


def describe_weights(located: Located) -> dict[str, Any]:
    """The same of published weights."""
    reading = located.need_preprocessing()
    kwargs, classes = dict(located.kwargs), located.kwargs["num_classes"]
    # The reader knows the names of ImageNet's classes.
    names = () if classes == 1000 else located.class_names
    return _describe(located.model_name, classes, kwargs, reading, names)


def _describe(
    name: str, classes: int, kwargs: Mapping[str, Any], reading: Preprocessing, names: Any
) -> dict[str, Any]:
    arguments = {key: value for key, value in kwargs.items() if key != "num_classes"}
    return {
        "num_classes": classes,
        **({"label_names": list(names)} if names else {}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": reading.to_config(),
        "flaxcnn": {"model": name, "layout": "flaxcnn"},
    }


def _compare(run: TrainedRun, after: Any) -> dict[str, tuple[float, float]]:
    """The test split's accuracy before and after; nothing where the data set is gone."""
    new, name = dataclasses.replace(run, variables={**run.variables, **after}), "accuracy"
    try:
        return {name: (run.evaluate("test").figures[name], new.evaluate("test").figures[name])}
    except UserError as error:
        print(f"the accuracy is not measured: {error}", file=sys.stderr)
        return {}


def _replace(out: Path, data: bytes) -> None:
    """Writes the file, whole or not at all."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error
