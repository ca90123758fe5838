"""The command `flaxcnn estimate`: what a config's run will cost."""

import argparse
import json
import textwrap
from collections.abc import Sequence

from absl import flags

from flaxcnn.commands.train import parse
from flaxcnn.errors import UserError
from flaxcnn.estimate.estimate import (
    EFFICIENCY,
    Estimate,
    estimate_config,
    parse_duration,
    without_weights,
)
from flaxcnn.exit_status import DONE
from flaxcnn.training.config import Config
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_help import format_rows
from flaxcnn.training.stages import Stage, read_stages


def estimate(arguments: Sequence[str]) -> int:
    """Prints the estimate. Raises UserError for a mistake."""
    args, rest = _make_parser().parse_known_args(arguments)
    try:
        config, *_ = parse([args.config, *rest])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    validate(config)
    session = parse_duration(args.session) if args.session else None
    before, stages = None, {}
    for stage in read_stages(config) or [Stage("", config)]:
        before = without_weights(stage.config, before)
        found = estimate_config(before, chip_name=args.chip, session=session)
        stages[stage.name] = found.to_dict()
        if not args.json:
            title = f"stage {stage.name}\n" if stage.name else ""
            print(f"{title}{format_estimate(found, before)}")
    if args.json:
        print(json.dumps({"stages": stages} if config.stages else stages[""]))
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flaxcnn estimate",
        description="What a run will cost, before its first step: memory, time, the largest batch "
        "that fits. The step is compiled, not run; no image is decoded of tfds sets and folders.",
        epilog="--config.FIELD=VALUE gives a field another value, as in `flaxcnn train`.",
    )
    parser.add_argument("config", metavar="CONFIG", help="name or file of a config")
    parser.add_argument(
        "--chip",
        metavar="CHIP",
        help="v5e, v6e, v4 (TPU), h100, a100, t4 (GPU) or cpu (default: the device here)",
    )
    parser.add_argument("--session", metavar="TIME", help="epochs that fit into 80m, 1h30m, ...")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    return parser


def format_estimate(found: Estimate, config: Config) -> str:
    """The estimate as lines for a terminal."""
    step = found.step
    how = {
        "compiled": f"as XLA plans it, compiled in {step.compile_seconds:.0f} s",
        "model": "a model: reckoned from the program, not compiled for the chip",
    }[found.method]
    verdict = {True: "fits", False: "DOES NOT FIT", None: "not known"}[found.fits]
    rows = [
        ("network", f"{config.model.name}, {config.precision}, batch {step.batch_size}"),
        ("chip", f"{found.devices} x {found.chip}" if found.devices > 1 else found.chip),
        ("memory", f"{_bytes(step.memory)} of {_bytes(found.capacity)}: {verdict}; {how}"),
        ("  state", f"{_bytes(step.state)}: weights, optimizer, averages; updated in place"),
        ("  data", f"{_bytes(step.data)}: what of the training split is on the device"),
    ]
    if step.memory is not None:
        rest = step.memory - step.state - step.data
        rows.append(("  the rest", f"{_bytes(rest)}: activations, gradients, code"))
    largest = "not known" if found.largest_batch is None else f"{found.largest_batch:,}"
    rows.append(("largest batch", f"{largest}; {found.largest_batch_by}"))
    traffic = "unknown" if step.traffic is None else _bytes(step.traffic)
    rows.append(("a step", f"{_scaled(step.flops, 'FLOP')}, {traffic} read and written"))
    if found.step_seconds is not None:
        bound = found.arithmetic_seconds == found.step_seconds
        seconds = found.step_seconds
        rows += [
            (
                "",
                f"at least {_time(seconds)}, by its {'arithmetic' if bound else 'memory traffic'}; "
                f"at most {step.batch_size / seconds:,.0f} images/s",
            ),
            ("an epoch", f"{found.steps_per_epoch:,} steps, {_range(found.epoch_seconds)}"),
            ("the run", f"{found.epochs:,} epochs, {_range(found.run_seconds)}"),
        ]
    if found.session_epochs is not None:
        likely = found.session_epochs * EFFICIENCY
        rows.append(
            (
                f"in {_time(found.session)}",
                f"at most {_count(found.session_epochs)} epochs, about {_count(likely)} at half",
            )
        )
    notes = [f"NOTE: {note}" for note in found.notes]
    return "\n".join([format_rows(rows), "", textwrap.fill(_CAVEAT, 100), *notes])


_CAVEAT = (
    "Times are the roofline's, which is never reached; good trainings of CNNs come to about half "
    "of it. Compilation, loading and decoding images, validation and checkpoints come on top."
)


def _range(seconds: float | None) -> str:
    assert seconds is not None
    return f"at least {_time(seconds)}, about {_time(seconds / EFFICIENCY)} at half"


def _count(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _bytes(count: float | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def _scaled(value: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:,.2f} {prefix}{unit}"
    return f"{value / 1e6:,.2f} M{unit}"


def _time(seconds: float | None) -> str:
    assert seconds is not None
    for unit, size, least in (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 1), ("ms", 1e-3, 1e-3)):
        if seconds >= least:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:,.3g} us"
