"""What a run says while it goes: metrics.jsonl, confusions.jsonl, TensorBoard events, progress.

On a terminal and in a notebook a bar moves; elsewhere (a file, a pipe) there are plain lines alone,
one for each epoch.
"""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm.auto import tqdm

from flaxcnn.data.plans import TrainPlan
from flaxcnn.errors import UserError
from flaxcnn.training.sinks import Sinks
from flaxcnn.training.workdir import Workdir, replace

Row = dict[str, Any]

_MOST_CLASSES = 100  # whose confusions are kept: 20 kB an epoch
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"


def read_rows(workdir: Workdir, *, whole: bool = False) -> list[Row]:
    """The rows of metrics.jsonl; a last line that a kill cut off is skipped.

    So are damaged lines, which are counted on stderr; with `whole` they raise UserError.
    """
    return _read(workdir.metrics, {"step", "split", "epoch"}, whole)


def read_confusions(workdir: Workdir) -> list[Row]:
    """As `read_rows`, of confusions.jsonl: `step`, `epoch` and `counts`, see `Task.confusion`."""
    return _read(workdir.confusions, {"step", "epoch", "counts"})


def _read(file: Path, fields: set[str], whole: bool = False) -> list[Row]:
    """The lines that are objects with these fields."""
    if not file.exists():
        return []
    rows, lines = [], file.read_bytes().split(b"\n")[:-1]
    for line in lines:
        with contextlib.suppress(ValueError):  # of JSON, and of bytes that are no UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and fields <= row.keys():
                rows.append(row)
    if damaged := len(lines) - len(rows):
        if whole:
            raise UserError(f"{file} is damaged: {damaged} lines are no rows")
        print(f"WARNING: {file}: {damaged} damaged lines are left out", file=sys.stderr)
    return rows


def hash_rows(rows: Iterable[Row]) -> "hashlib._Hash":
    """The SHA-256, to be gone on with, of the lines of those rows that are no hashes of a state."""
    digest = hashlib.sha256()
    for row in rows:
        if row["split"] != "state":
            digest.update((json.dumps(row) + "\n").encode())
    return digest


class Logger:
    """Writes rows to metrics.jsonl and TensorBoard and shows progress.

    Rows beyond `first_step` are of steps that will be done again: they are dropped, so that the
    file reads as if the run had never been interrupted.
    """

    def __init__(
        self, workdir: Workdir, plan: TrainPlan, first_step: int, figure: str, sinks: Sinks
    ):
        """`figure` is the metric that is shown beside the loss; rows go to `sinks`, too."""
        rows = (
            [row for row in read_rows(workdir) if row["step"] <= first_step] if first_step else []
        )
        temporary = workdir.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replace(temporary, workdir.metrics)
        if workdir.confusions.exists():
            kept = [row for row in read_confusions(workdir) if first_step >= row["step"] > 0]
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            replace(temporary, workdir.confusions)
        for row in rows:
            sinks.log(row)  # who was added later, or has failed, lacks some
        self._confusions, self._sinks = workdir.confusions, sinks
        self._file = open(workdir.metrics, "a")  # noqa: SIM115 (closed by __exit__)
        self._digest, self._lock = hash_rows(rows), threading.Lock()
        self._events = SummaryWriter(str(workdir.path / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=plan.total_steps,
            initial=first_step,
            bar_format=_BAR,
            dynamic_ncols=True,
            mininterval=0.5,
            # None: where it is not on a terminal; a notebook has a bar of its own kind.
            disable=None if "ipykernel" not in sys.modules else False,
        )
        self._plan, self._step, self._shown = plan, first_step, ("loss", figure)
        self._epoch = _of_unfinished_epoch(rows, first_step // plan.steps_per_epoch)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0  # of the calls that did not compile

    def __enter__(self) -> "Logger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._events.close()
        self._file.close()

    def log_train(self, row: Row, steps: int, seconds: float | None, waited: float) -> None:
        """One call's means, `row`, over `steps`, which took `seconds`.

        In `waited` of them the device had nothing to do until the next call's images came.
        `seconds` is None for a call that compiled: its time is in no rate. The means are None where
        all of the steps were skipped (float16).
        """
        if seconds is not None:
            self._waited += waited
            self._steps += steps
            self._seconds += seconds
            row = row | {"images_per_second": round(steps * self._plan.batch_size / seconds, 1)}
        self._step = row["step"]
        self._epoch.append((steps, row))
        loss = "" if row["loss"] is None else f"loss {row['loss']:.4f}"
        self._bar.set_postfix_str(f"{self._describe_rate()}{loss}", refresh=False)
        self._bar.update(steps)
        self._write({**row, "split": "train"})

    def log_epoch(self, validation: Row | None) -> None:
        """The end of an epoch: its training means, and what validation measured, in one line."""
        counted = [(n - row.get("skipped_steps", 0), row) for n, row in self._epoch]
        counted = [(n, row) for n, row in counted if n]
        steps = sum(n for n, _ in counted)
        means = {
            name: sum(n * row[name] for n, row in counted) / steps
            for name in self._shown
            if counted and all(name in row for _, row in counted)
        }
        line = (
            f"{self._step // self._plan.steps_per_epoch}/{self._plan.epochs}: {self._format(means)}"
        )
        if validation is not None:
            self._write({**validation, "split": "validation"})
            line += f" · validation {self._format(validation)}"
        rate = self._describe_rate().replace(", ", " · ").removesuffix(" · ")
        tqdm.write(f"epoch {line}{' · ' * bool(rate)}{rate}")  # above the bar, if there is one
        sys.stdout.flush()
        self._epoch.clear()

    def log_confusion(self, step: int, counts: np.ndarray | None) -> None:
        """The confusion matrix of the validation at `step`, [C, C]; only up to 100 classes."""
        if counts is None or len(counts) > _MOST_CLASSES:
            return
        row = {"step": step, "epoch": step // self._plan.steps_per_epoch, "counts": counts.tolist()}
        with open(self._confusions, "a") as file:
            file.write(json.dumps(row) + "\n")

    def log_state(self, step: int) -> Callable[[str], None]:
        """What adds a row with the SHA-256 of the state at `step`, called by any thread.

        The row also has the SHA-256 of the rows of training and validation until now.
        """
        row = {
            "step": step,
            "epoch": step / self._plan.steps_per_epoch,
            "split": "state",
            "rows_sha256": self._digest.hexdigest(),
        }

        return lambda sha256: self._append(json.dumps(row | {"sha256": sha256}) + "\n")

    def _describe_rate(self) -> str:
        """As `1,234 images/s, data 3 %, 00:56 left, `; empty before a call is timed.

        Of training alone; the share of its time in which devices waited for data is in it from 1 %.
        """
        if not self._steps:
            return ""
        text = f"{self._steps * self._plan.batch_size / self._seconds:,.0f} images/s, "
        share = self._waited / self._seconds
        text += f"data {share:.0%}, ".replace("%", " %") if share >= 0.01 else ""
        left = (self._plan.total_steps - self._step) * self._seconds / self._steps
        return text + (f"{tqdm.format_interval(left)} left, " if left else "")

    def _format(self, metrics: Mapping[str, float]) -> str:
        names = [name for name in self._shown if name in metrics]
        names += [name for name in metrics if name not in (*self._shown, "step", "epoch")]
        return " · ".join(f"{name} {metrics[name]:.4f}" for name in names)

    def _write(self, row: Row) -> None:
        line = json.dumps(row) + "\n"
        self._append(line)
        self._digest.update(line.encode())
        self._sinks.log(row)
        for name, value in row.items():
            if name not in ("step", "epoch", "split") and value is not None:
                self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def _append(self, line: str) -> None:
        with self._lock:
            self._file.write(line)
            self._file.flush()


class NoLogger(contextlib.nullcontext[Any]):
    """What processes log other than the first: nothing."""

    def __init__(self):
        super().__init__(self)

    def _ignore(self, *what: Any) -> None:
        pass

    log_train = log_epoch = log_confusion = _ignore

    def log_state(self, step: int) -> Callable[[str], None]:
        """See `Logger`."""
        return self._ignore


def _of_unfinished_epoch(rows: list[Row], epochs_done: int) -> list[tuple[int, Row]]:
    """The training rows after so many epochs, each with the number of its steps."""
    train = [row for row in rows if row["split"] == "train"]
    before = [0, *(row["step"] for row in train)]
    pairs = zip(before, train, strict=False)
    return [(row["step"] - step, row) for step, row in pairs if row["epoch"] > epochs_done + 1e-9]
