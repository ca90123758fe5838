"""What a run says while it goes: metrics.jsonl, TensorBoard events, the progress bar."""

import json
import os
import time
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from flaxcnn.training.workdir import Workdir

Row = dict[str, Any]


def read_rows(workdir: Workdir) -> list[Row]:
    """The rows of metrics.jsonl; a last line that a kill cut off is left out."""
    if not workdir.metrics.exists():
        return []
    lines = workdir.metrics.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Logger:
    """Writes rows to metrics.jsonl and TensorBoard and moves the progress bar.

    Rows beyond `first_step` are of steps that will be done again: they are dropped, so that the
    file reads as if the run had never been interrupted.
    """

    def __init__(self, workdir: Workdir, first_step: int, total_steps: int):
        rows = [row for row in read_rows(workdir) if row["step"] <= first_step]
        temporary = workdir.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, workdir.metrics)
        self._file = open(workdir.metrics, "a")  # noqa: SIM115 (closed by __exit__)
        self._events = SummaryWriter(str(workdir.path / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=0.5
        )
        self._last = time.perf_counter()

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

    def log_train(self, row: Row, steps: int, images: int) -> None:
        """One call's means, with its rate since the last row, and the bar `steps` further."""
        now = time.perf_counter()
        rate = images / (now - self._last)
        self._last = now
        self._bar.set_postfix_str(f"{rate:,.0f} images/s, loss {row['loss']:.4f}", refresh=False)
        self._bar.update(steps)
        self._write({**row, "split": "train", "images_per_second": round(rate, 1)})

    def log_validation(self, row: Row, line: str) -> None:
        """One epoch's validation metrics; `line` is shown above the bar."""
        self._write({**row, "split": "validation"})
        self._bar.write(line)
        self._last = time.perf_counter()  # evaluation is no part of the training rate

    def _write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "epoch", "split"):
                self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])
