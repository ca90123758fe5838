"""Where two runs, or two traces, part: the step, the layer, the tensor, and why that may be."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flaxcnn.audit.replay import PastRun, Replay, open_run, to_device, to_host
from flaxcnn.audit.trace import Trace, Tracer, flatten, load_trace
from flaxcnn.audit.ulps import Difference, compare
from flaxcnn.errors import UserError
from flaxcnn.training.checkpoint import History
from flaxcnn.training.config_json import differences, to_dict
from flaxcnn.training.sessions import compare_sessions, read_sessions
from flaxcnn.training.state import TrainState, hash_tree

# Fields of the config that can make the first difference in a kind of array, likeliest first.
_CAUSES = {
    "parameter": ("seed", "model.", "optimizer."),
    "statistic": ("seed", "model."),
    "input": ("seed", "data."),
    "activation": ("model.", "precision", "parallel", "seed", "data.batch_size"),
    "output": ("model.", "precision", "parallel", "seed"),
    "metric": ("loss.", "task.", "data.", "seed"),
    "gradient": ("loss.", "task.", "data.", "optimizer.accumulate", "precision"),
    "state": ("optimizer.", "epochs", "steps_per_call"),
}
_LOOKED_AFTER = "run."  # fields that change no result


@dataclasses.dataclass
class Divergence:
    """What `diff` found. `step` is the first in which something differs; None if nothing does.

    Of a trace the differences are all of that step, in the order of computation; of two runs the
    last hash that agrees is that of `agreed` steps, and the first that differs of `differed`.
    """

    config: list[str] = dataclasses.field(default_factory=list)  # "field: A -> B"
    data: list[str] = dataclasses.field(default_factory=list)
    environment: list[str] = dataclasses.field(default_factory=list)
    agreed: int | None = None
    differed: int | None = None
    step: int | None = None
    differences: list[Difference] = dataclasses.field(default_factory=list)
    compared: int = 0  # arrays of that step
    cause: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether all that was compared has the same bits, or is within the tolerance."""
        return self.step is None and self.differed is None


def diff(a: str | Path, b: str | Path, *, tolerance: float = 0.0) -> Divergence:
    """See `flaxcnn.audit.diff`."""
    for path in (a, b):
        if not os.path.exists(path):
            raise UserError(f"there is no run and no file {path}")
    files = [os.path.isfile(path) for path in (a, b)]
    if all(files):
        return diff_traces(a, b, tolerance)
    if any(files):
        raise UserError(f"{a} and {b} must both be runs, or both be files of `diff --record`")
    if tolerance:
        raise UserError("a tolerance is for two traces: of runs hashes are compared")
    return _RunDiff(open_run(a), open_run(b)).find()


def diff_traces(a: str | Path, b: str | Path, tolerance: float = 0.0) -> Divergence:
    """The first step of two files of `record` in which arrays of the same name differ."""
    (trace_a, about_a), (trace_b, about_b) = load_trace(a), load_trace(b)
    names = [name for name in trace_a if name in trace_b]
    if not names:
        raise UserError(f"{a} and {b} have no array of the same name")
    found = Divergence()
    if about_a and about_b:
        found.config = _differences(about_a["config"], about_b["config"])
        found.data = _differences(about_a["data"], about_b["data"])
        found.environment = compare_sessions(about_a["environment"], about_b["environment"])
    for path, trace in ((a, trace_a), (b, trace_b)):
        alone = [name for name in trace if name not in names]
        if alone:
            found.notes.append(f"{len(alone)} arrays are in {path} alone: {', '.join(alone[:3])}")
    by_step: dict[str, list[str]] = {}
    for name in names:
        by_step.setdefault(name.partition("/")[0], []).append(name)
    for step, of_step in by_step.items():
        differing = _compare_traces(trace_a, trace_b, of_step, tolerance)
        if differing:
            if not step.isdecimal():
                raise UserError(f"{step}: the names of arrays begin with a step, as 0/input")
            found.step = int(step) + about_a.get("first_step", 0)
            found.differences, found.compared = differing, len(of_step)
            kind = differing[0].name.split("/")[1]
            _explain(found, kind)
            break
    return found


def _compare_traces(
    a: Trace, b: Trace, names: Iterable[str], tolerance: float = 0.0
) -> list[Difference]:
    found = [compare(name, a[name], b[name]) for name in names]
    return [d for d in found if d and (d.note or not d.relative <= tolerance or not tolerance)]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = differences(before, after)
    return [line for line in lines if not line.startswith(_LOOKED_AFTER)]


def _explain(found: Divergence, kind: str) -> None:
    """Fills in the likeliest cause of a first difference in an array of that kind."""
    for prefix in _CAUSES.get(kind, ()):
        fields = [line for line in found.config if line.startswith(prefix)]
        if fields:
            found.cause = f"config {'; '.join(fields)}"
            return
    order = ("environment", "config", "data")
    for name in ("data", *order) if kind == "input" else order:
        if lines := getattr(found, name):
            found.cause = f"{name} {'; '.join(lines)}"
            return
    found.cause = (
        "nothing that is recorded: the same config, data and environment gave other bits (changed "
        "files or code, or a computation that is not deterministic)"
    )


class _RunDiff:
    """The first divergence of two runs: by their hashes, then by doing the steps in question again.

    Where both have the same config and data, one is done again: the other would be the same.
    """

    def __init__(self, a: PastRun, b: PastRun):
        self._a, self._b = a, b
        self._hashes = [_hashes(run) for run in (a, b)]
        config, data = (
            _differences(*map(plain, (a.experiment, b.experiment)))
            for plain in (lambda e: to_dict(e.config), lambda e: dataclasses.asdict(e.facts))
        )
        first, *others = [*read_sessions(a.folder), *read_sessions(b.folder)]
        changes = {line for other in others for line in compare_sessions(first, other)}
        self.found = Divergence(config, data, sorted(changes))

    def find(self) -> Divergence:
        """Compares hash by hash, and looks into the first steps that differ."""
        found, (ours, theirs) = self.found, self._hashes
        common = sorted(ours.keys() & theirs.keys())
        if not common:
            raise UserError(
                f"{self._a.folder.path} and {self._b.folder.path} have no step at which both have "
                "a hash or a checkpoint"
            )
        for step in common:
            if ours[step] != theirs[step]:
                found.differed = step
                break
            found.agreed = step
        if found.differed is None:
            return found
        if found.agreed is None:
            self._compare_initial(found.differed)
        if found.agreed is not None:
            self._replay(found.agreed, found.differed)
        return found

    def _compare_initial(self, differed: int) -> None:
        """The states at step 0, made again; where they are the same, the runs agreed there."""
        found = self.found
        initial = [to_host(run.restore(0)[0]) for run in (self._a, self._b)]
        if len(set(map(hash_tree, initial))) > 1:
            self._look((0, 1), initial, [[], []])
        elif differed:  # runs that were trained before hashes were logged
            found.agreed = 0
        else:
            found.notes.append("made again here, both initial states are the same")
            _explain(found, "")

    def _replay(self, agreed: int, differed: int) -> None:
        """From the last common checkpoint on, call by call, until the states differ."""
        found, (ours, theirs) = self.found, self._hashes
        kept = {step: run for run in (self._b, self._a) for step in run.saved.steps}
        base = max(
            (s for s in kept if s <= agreed and ours.get(s) == theirs.get(s)),
            default=0,
        )
        state, history = kept[base].restore(base) if base else self._a.restore(0)
        state, runs = to_host(state), [self._a]
        if found.config or found.data:
            runs.append(self._b)
        replays = [Replay(run.experiment) for run in runs]
        sides = [r.calls(base, to_device(state), list(history)) for r in replays]
        before, end = base, base
        with tqdm(total=differed - base, unit=" steps", disable=None, leave=False) as bar:
            for end in _common_ends(sides):
                bar.update(end - before)
                hashes = {replay.hash_state() for replay in replays}
                if len(hashes) > 1:
                    histories = [_until(run, before) for run in runs]
                    self._look((before, end), [state, state], histories)
                    if found.step is None:
                        self._say_states(end, [to_host(r.state) for r in replays], "steps_per_call")
                    return
                state, before = to_host(replays[0].state), end
                if end >= differed:
                    break
        self._judge(base, end, state)

    def _judge(self, base: int, step: int, state: TrainState) -> None:
        """What follows from a replay to `step`, of both, that led to the one host state `state`."""
        found, replayed, stored = self.found, hash_tree(state), []
        names = []
        for name, run, hashes in zip("AB", (self._a, self._b), self._hashes, strict=True):
            agrees = hashes.get(step) == replayed
            names += [name] if agrees else []
            if agrees:
                stored.append(state)
            elif step in run.saved.steps:
                stored.append(to_host(run.restore(step)[0]))
        if len(stored) == 2:
            self._say_states(step, stored, "")
        done = f"done again here from step {base} to {step}, training gives the bits of"
        found.notes.append(f"{done} {names[0] if names else 'neither'}")
        if found.environment:
            _explain(found, "")
            paths = (self._a.folder.path, self._b.folder.path)
            for name, path in zip("ab", paths, strict=True):
                found.notes.append(
                    "to see it layer by layer, where it was trained (or with its NPROC): "
                    f"flaxcnn diff --record {name}.npz {path} --start {base}"
                )
        elif names:
            other = "B" if names[0] == "A" else "A"
            found.cause = (
                f"the state of {other} at step {step} is not what its training gives: it was "
                "changed, or computed otherwise, between two saves"
            )
        else:
            _explain(found, "")

    def _look(
        self, steps: tuple[int, int], states: Sequence[TrainState], histories: Sequence[History]
    ) -> None:
        """Goes through `steps` one at a time, from a state of each, until something differs."""
        found, (first, last) = self.found, steps
        sides = [
            Tracer(run.experiment).steps(first, state, history)
            for run, state, history in zip((self._a, self._b), states, histories, strict=True)
        ]
        for (step, a, after_a), (_, b, after_b) in zip(*sides, strict=False):
            names = [name for name in a if name in b]
            for name, trace in (("A", a.keys() - b), ("B", b.keys() - a)):
                if trace:
                    found.notes.append(f"only in {name}: {', '.join(sorted(trace)[:5])}")
            found.differences = _compare_traces(a, b, names)
            found.compared = len(names)
            if found.differences or a.keys() != b.keys():
                found.step = step
                kinds = [d.name.split("/")[0] for d in found.differences]
                _explain(found, (kinds or ["activation"])[0])
                return
            self._say_states(step + 1, [after_a(), after_b()], "state")
            if found.step is not None or step + 1 == last:
                return

    def _say_states(self, step: int, states: Sequence[TrainState], kind: str) -> None:
        """Compares two states after `step` steps; a difference came with the last of them."""
        a, b = ({f"state/{k}": v for k, v in flatten(s).items()} for s in states)
        alone = sorted(a.keys() ^ b.keys())
        differing = _compare_traces(a, b, [name for name in a if name in b])
        if alone:
            self.found.notes.append(f"only in the state of one: {', '.join(alone[:5])}")
        if differing or alone:
            self.found.step, self.found.differences = step - 1, differing
            self.found.compared = len(a)
            _explain(self.found, kind)


def _hashes(run: PastRun) -> dict[int, str]:
    """By step: what metrics.jsonl has, or where there is a checkpoint the hash of that."""
    return run.hashes | {step: run.saved.read_hash(step) for step in run.saved.steps}


def _until(run: PastRun, step: int) -> History:
    return [row for row in run.lines if row["split"] == "validation" and row["step"] <= step]


def _common_ends(sides: Sequence[Iterator[tuple[int, Any]]]) -> Iterator[int]:
    """Advances what is behind; yields the steps that all have come to."""
    try:
        ends = [next(side)[0] for side in sides]
        while True:
            if len(set(ends)) == 1:
                yield ends[0]
                ends = [next(side)[0] for side in sides]
            else:
                behind = ends.index(min(ends))
                ends[behind] = next(sides[behind])[0]
    except StopIteration:
        return
