"""The command `flaxcnn diff`: where two runs, or two recorded traces, part."""

import argparse
import dataclasses
import json
from pathlib import Path

from flaxcnn.audit.divergence import Divergence, diff
from flaxcnn.audit.trace import record
from flaxcnn.audit.ulps import NOT_A_NUMBER, Difference
from flaxcnn.commands.train import parse
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, FAILED

_SHOWN = 20  # arrays, unless --all


def run(args: argparse.Namespace) -> int:
    """Compares two runs or traces, exit status 1 if they differ; with --record writes a trace."""
    if args.record:
        if len(args.paths) != 1:
            raise UserError("--record needs one run or config")
        return _record(args)
    if len(args.paths) != 2 or args.flags:
        raise UserError("two runs or two files of `diff --record` are compared")
    found = diff(*args.paths, tolerance=args.tolerance)
    if args.json:
        print(json.dumps(dataclasses.asdict(found) | {"same": found.same}))
    else:
        print(format_divergence(found, args.paths, args.all))
    return DONE if found.same else FAILED


def _record(args: argparse.Namespace) -> int:
    target = args.paths[0]
    if not (Path(target) / "run.json").exists():
        target = parse([target, *args.flags])[0]
    elif args.flags:
        raise UserError(f"{args.flags[0]}: {target} is a run, whose config stays as it is")
    record(target, args.record, steps=args.steps, start=args.start)
    size = Path(args.record).stat().st_size / 2**20
    print(f"{args.record}: {args.steps} steps from step {args.start} on, {size:.1f} MiB")
    return DONE


def format_divergence(found: Divergence, paths: list[str], everything: bool = False) -> str:
    """What was compared, the first difference, and what it may come from, line by line."""
    lines = [f"{name} {path}" for name, path in zip("AB", paths, strict=True)]
    for name in ("config", "data", "environment"):
        lines.append(f"{name}: {'; '.join(getattr(found, name)) or 'no difference'}")
    if found.agreed is not None:
        lines.append(f"state: the same bits up to step {found.agreed}")
    if found.differed is not None:
        lines.append(f"state: other bits at step {found.differed}")
    lines += found.notes
    if found.same:
        return "\n".join([*lines, "NO DIFFERENCE"])
    if found.step is not None:
        lines += _format_differences(found, everything)
    if found.cause:
        lines.append(f"likely cause: {found.cause}")
    return "\n".join([*lines, "DIFFERENT"])


def _format_differences(found: Divergence, everything: bool) -> list[str]:
    lines = [
        f"first difference: step {found.step}, "
        f"{found.differences[0].name if found.differences else 'in what only one has'} "
        f"({len(found.differences)} of {found.compared} arrays differ)"
    ]
    shown = found.differences if everything else found.differences[:_SHOWN]
    if not shown:
        return lines
    width = max(len(d.name) for d in shown)
    lines.append(f"  {'array':{width}}  {'values that differ':>20}  {'max ULPs':>11}  relative")
    lines += [f"  {d.name:{width}}  {_format_figures(d)}" for d in shown]
    if len(shown) < len(found.differences):
        lines.append(f"  ... and {len(found.differences) - len(shown)} more (--all)")
    first = shown[0]
    if not first.note:
        place = ", ".join(map(str, first.where))
        lines.append(
            f"  in {first.name}[{place}]: {first.pair[0]:.9g} and {first.pair[1]:.9g}, "
            f"{_format_ulps(first)} ULPs apart"
        )
    return lines


def _format_figures(d: Difference) -> str:
    if d.note:
        return d.note
    counts = f"{d.differing:,} of {d.values:,}"
    return f"{counts:>20}  {_format_ulps(d):>11}  {d.relative:8.1e}"


def _format_ulps(d: Difference) -> str:
    return "NaN" if d.max_ulps == NOT_A_NUMBER else f"{d.max_ulps:,}"
