"""Whether a run is what its folder says: stretches of it are done again and compared.

Three questions, from cheap to dear. Is metrics.jsonl as it was written, and the same as what the
checkpoints have of it? Is each checkpoint the state whose hash metrics.jsonl has? Does training,
from a checkpoint on, give the hashes and the rows that follow? Only the last is proof: who edits
a folder can write new hashes into it, but cannot find weights that training would not have.
"""

import dataclasses
import datetime
import hashlib
import json
import random
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flaxcnn.audit.replay import PastRun, Replay, open_run
from flaxcnn.errors import UserError
from flaxcnn.training.checkpoint import History
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.environment import environment
from flaxcnn.training.logger import Row, hash_rows
from flaxcnn.training.sessions import compare_sessions, read_sessions
from flaxcnn.training.state import TrainState, hash_tree

TOLERANCE = 1e-3  # of a loss, relative, where another machine rounds otherwise: see docs/verify.md
COMPARED_STEPS = 100  # of a stretch by losses: rounding grows from step to step


@dataclasses.dataclass
class Stretch:
    """Steps of the run that were done again, and what came of it."""

    first: int  # the step it starts after: 0, or that of a checkpoint
    last: int
    outcome: str = ""  # "bits", "losses" (within the tolerance) or "failed"
    hashes: int = 0  # of states, that agree
    rows: int = 0  # of metrics.jsonl, that agree
    largest_difference: float = 0.0  # of a loss, relative
    problem: str = ""


def verify(
    workdir: str | Path, *, segments: int | None = 5, seed: int | None = None
) -> dict[str, Any]:
    """See `flaxcnn.audit.verify`."""
    if segments is not None and segments < 0:
        raise UserError(f"segments must be at least 0, got {segments}")
    seed = secrets.randbelow(2**32) if seed is None else seed
    started, run = time.perf_counter(), open_run(workdir)
    if not run.saved.steps:
        raise UserError(f"{run.folder.path} has no checkpoint yet")
    whole, problems = _check_checkpoints(run)
    problems = [*_check_rows(run), *problems]
    now = environment()
    sessions = read_sessions(run.folder)
    changes = sorted({line for past in sessions for line in compare_sessions(past, now)})
    possible = _stretches(run, whole, to_checkpoints=segments is None)
    count = len(possible) if segments is None else min(segments, len(possible))
    chosen = sorted(random.Random(seed).sample(possible, count))
    stretches = _replay_all(run, [Stretch(*ends) for ends in chosen], exact=not changes)
    problems += [s.problem for s in stretches if s.outcome == "failed"]
    by_losses = any(stretch.outcome == "losses" for stretch in stretches)
    certificate = {
        "result": "failed" if problems else "losses" if by_losses else "bits",
        "problems": problems,
        "run": _describe(run),
        "checkpoints": whole,
        "segments": [dataclasses.asdict(stretch) for stretch in stretches],
        "possible_segments": len(possible),
        "steps_replayed": sum(s.last - s.first for s in stretches),
        "seed": seed,
        "tolerance": TOLERANCE,
        "changes": changes,
        "environment": now,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    try:
        run.folder.write("certificate", certificate)
    except OSError as error:  # an audit may read where it cannot write
        print(f"certificate.json is not written: {error.strerror}", file=sys.stderr)
    return certificate


def _describe(run: PastRun) -> dict[str, Any]:
    config = to_dict(run.experiment.config)
    facts = run.experiment.facts
    return {
        "workdir": str(run.folder.path.absolute()),
        "model": config["model"]["name"],
        "source": config["data"]["source"],
        "data_version": facts.data_version,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "steps": max(run.saved.steps),
        "total_steps": run.experiment.plan.total_steps,
        "params_sha256": run.folder.read("result")["params_sha256"]
        if run.folder.has("result")
        else None,
    }


def _check_rows(run: PastRun) -> list[str]:
    """The first place where metrics.jsonl is not as its own hashes have it."""
    before, rows = 0, run.lines
    hashes = {row["step"]: row["rows_sha256"] for row in rows if row["split"] == "state"}
    for step in sorted(hashes):
        if hash_rows(r for r in rows if r["step"] <= step).hexdigest() != hashes[step]:
            return [
                f"metrics.jsonl: a row after step {before} and up to step {step} is not the one "
                "that was written"
            ]
        before = step
    return []


def _check_checkpoints(run: PastRun) -> tuple[list[int], list[str]]:
    """The checkpoints that are whole, and what is wrong with the others."""
    whole, problems = [], []
    result = run.folder.read("result") if run.folder.has("result") else {}
    for step in tqdm(run.saved.steps, "checkpoints", disable=None, leave=False):
        try:
            state, history = run.restore(step)
        except UserError as error:
            if step in run.saved.steps:  # and not deleted by a run that is training
                problems.append(str(error))
            continue
        found = _judge_checkpoint(run, step, state, history)
        final = {"params": state.params, "batch_stats": state.batch_stats}
        if step == result.get("steps") and hash_tree(final) != result["params_sha256"]:
            found.append(f"checkpoint {step} does not hold the weights of result.json")
        problems += found
        whole += [] if found else [step]
    return whole, problems


def _judge_checkpoint(run: PastRun, step: int, state: TrainState, history: History) -> list[str]:
    problems = []
    if int(state.step) != step:
        problems.append(f"checkpoint {step} holds the state of step {int(state.step)}")
    if hash_tree(state) != run.hashes.get(step, hash_tree(state)):
        problems.append(f"checkpoint {step} is not the state whose hash metrics.jsonl has")
    measured = [row for row in run.lines if row["split"] == "validation" and row["step"] <= step]
    if [{**row, "split": "validation"} for row in history] != measured:
        problems.append(f"metrics.jsonl and checkpoint {step} differ in what validation measured")
    return problems


def _stretches(run: PastRun, whole: list[int], *, to_checkpoints: bool) -> list[tuple[int, int]]:
    """From step 0 and each whole checkpoint to the next hash, or to the next checkpoint."""
    ends = whole if to_checkpoints else sorted({*run.hashes, *whole})
    starts = [0, *whole]
    following = ((start, next((end for end in ends if end > start), None)) for start in starts)
    return [(start, end) for start, end in following if end is not None]


def _replay_all(run: PastRun, stretches: list[Stretch], *, exact: bool) -> list[Stretch]:
    replay = Replay(run.experiment)
    steps = sum(stretch.last - stretch.first for stretch in stretches)
    with tqdm(total=steps, desc="replaying", unit=" steps", disable=None, leave=False) as bar:
        for stretch in stretches:
            for done in _replay(run, replay, stretch, exact=exact):
                bar.update(done)
    return stretches


def _replay(run: PastRun, replay: Replay, stretch: Stretch, *, exact: bool) -> Iterator[int]:
    """Fills in what came of `stretch`; yields the steps as they are done."""
    before, rows, hashes = stretch.first, run.rows, run.hashes
    same, differing = True, ""
    try:
        for end, again in replay.calls(stretch.first, *run.restore(stretch.first)):
            yield end - before
            for row in again:
                differing = differing or _compare(row, rows, stretch, exact=exact)
            if end in hashes:
                agrees = replay.hash_state() == hashes[end]
                same, stretch.hashes = same and agrees, stretch.hashes + agrees
            elif end == stretch.last:  # of a run that was trained before hashes were logged
                agrees = replay.hash_state() == hash_tree(run.restore(end)[0])
                same, stretch.hashes = same and agrees, stretch.hashes + agrees
            if exact and not same and not differing:
                differing = f"the state at step {end} has another hash"
            before = end
            if differing or end >= stretch.last:
                break
    except UserError as error:
        differing = str(error)
    if differing:
        where = f"steps {stretch.first} to {stretch.last}, done again"
        stretch.outcome, stretch.problem = "failed", f"{where}: {differing}"
    else:
        stretch.outcome = "bits" if same else "losses"


def _compare(
    row: Row, rows: Mapping[tuple[str, int], Row], stretch: Stretch, *, exact: bool
) -> str:
    """How a row differs from the one of metrics.jsonl; "" where it does not."""
    split, step = row["split"], row["step"]
    written = rows.get((split, step))
    if written is None:
        return f"metrics.jsonl has no {split} row of step {step}"
    if exact:
        names = [name for name in row if row[name] != written.get(name)]
        if names:
            name = names[0]
            return f"{split} {name} at step {step} is {row[name]}, not {written.get(name)}"
    elif step - stretch.first <= COMPARED_STEPS:
        ours, theirs = row["loss"], written["loss"]
        if ours is None and theirs is None:  # all of the call's steps were skipped (float16)
            ours = theirs = 0.0
        elif ours is None or theirs is None:
            return f"{split} loss at step {step} is {ours}, not {theirs}"
        difference = abs(ours - theirs) / max(abs(theirs), 1e-12)
        stretch.largest_difference = max(stretch.largest_difference, difference)
        if not difference <= TOLERANCE:
            return (
                f"{split} loss at step {step} is {ours}, not {theirs}: a relative difference of "
                f"{difference:.1e}, where {TOLERANCE:g} is the tolerance"
            )
    stretch.rows += 1
    return ""
