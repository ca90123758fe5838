"""The command `flaxcnn verify`: whether a run is what its folder says."""

import argparse
import json
from typing import Any

from flaxcnn.audit.certificate import COMPARED_STEPS, verify
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, FAILED


def run(args: argparse.Namespace) -> int:
    """Does stretches of a run again; exit status 1 if something is not as the folder says."""
    segments = None if args.segments == "all" else _parse_count(args.segments)
    certificate = verify(args.workdir, segments=segments, seed=args.seed)
    print(json.dumps(certificate) if args.json else format_certificate(certificate))
    return FAILED if certificate["problems"] else DONE


def _parse_count(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f'--segments must be a number or "all", got {text!r}')
    return int(text)


def format_certificate(certificate: dict[str, Any]) -> str:
    """A certificate as text: what was done, what differs, and the result in the last line."""
    run, segments = certificate["run"], certificate["segments"]
    tolerance = certificate["tolerance"]
    share = certificate["steps_replayed"] / run["steps"]
    checkpoints = ", ".join(map(str, certificate["checkpoints"]))
    lines = [
        f"{run['workdir']}: {run['model']} on {run['source']}, "
        f"{run['steps']} of {run['total_steps']} steps",
        f"checkpoints as the history has them: {checkpoints or 'none'}",
        f"done again: {len(segments)} of {certificate['possible_segments']} stretches, "
        f"{certificate['steps_replayed']} steps ({share:.0%}), drawn with seed "
        f"{certificate['seed']}, in {certificate['seconds']:.0f} s",
    ]
    for segment in segments:
        line = f"  {segment['first']:>7} to {segment['last']:<7} "
        if segment["outcome"] == "failed":
            lines.append(f"{line} FAILED")
        elif segment["outcome"] == "bits":
            compared = f"{segment['hashes']} of the state, {segment['rows']} rows"
            lines.append(f"{line} same bits ({compared})")
        else:
            lines.append(
                f"{line} other bits, losses differ by at most {segment['largest_difference']:.1e} "
                f"({segment['rows']} rows)"
            )
    if certificate["changes"]:
        lines.append(f"this is not the machine of the run: {'; '.join(certificate['changes'])}")
        lines.append(
            f"so bits may differ, and losses of the first {COMPARED_STEPS} steps of a stretch by "
            f"{tolerance:g} of their value"
        )
    lines += [f"PROBLEM: {problem}" for problem in certificate["problems"]]
    lines.append(
        {
            "bits": "VERIFIED: training gives the same bits again",
            "losses": "VERIFIED within the tolerance: training gives the same losses again",
            "failed": "NOT VERIFIED",
        }[certificate["result"]]
    )
    return "\n".join(lines)
