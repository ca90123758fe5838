"""Trackers that a run's metrics, pictures and result go to as well: `run.sinks`.

    wandb:PROJECT, wandb:TEAM/PROJECT    mlflow:EXPERIMENT    trackio:PROJECT

Each is a file of this package with a class `Tracker`, imported only where a run names it. Where a
tracker listens is its own affair: WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR and the like.
A thread for each sends to it, so that training waits for nothing; one that fails is reported once
and left alone until the run is resumed, which sends what it lacks.
"""

import importlib
import json
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flaxcnn.training.workdir import Workdir

PATIENCE = 60.0  # seconds that the end of a run waits for a tracker without any progress
Marks = dict[str, Any]  # of a tracker: its run's id, the last step of each split, and the result's


class Tracker(Protocol):
    """One run at a tracker."""

    run_id: str  # by which it is found again

    def __init__(self, place: str, name: str, config: Mapping[str, Any], run_id: str, folder: Path):
        """Makes a run called `name` in `place`; resumes the one with `run_id`, unless that is "".

        What it has to keep on disk goes to `folder`.
        """
        ...

    def reached(self, split: str) -> int:
        """The last step that it has of the rows of a split; 0 for none, or if it cannot say."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step. Steps never decrease, and may come more than once."""
        ...

    def picture(self, step: int, file: Path) -> None:
        """A PNG file."""
        ...

    def close(self, finished: bool) -> None:
        """Returns when all of it has been sent; `finished` if the run has its result."""
        ...


class Sinks:
    """The trackers `names` of the run in `folder`, whose config they show. A context."""

    def __init__(self, names: Sequence[str], folder: Workdir, config: Mapping[str, Any]):
        marks: dict[str, Marks] = folder.read("sinks") if names and folder.has("sinks") else {}
        lock = threading.Lock()
        self._feeds = [_Feed(name, folder, config, marks, lock) for name in names]

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *exception: object) -> None:
        for feed in self._feeds:
            feed.close()

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl. Never waits, never raises, as the rest here."""
        for feed in self._feeds:
            feed.put(row)

    def finish(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """The run is finished: its result, and its pictures in the run's folder."""
        for feed in self._feeds:
            feed.put((result, [file for file in pictures if file.exists()]))


class _Feed:
    """What is to be sent to one tracker, and the thread that does."""

    def __init__(
        self,
        name: str,
        folder: Workdir,
        config: Mapping[str, Any],
        marks: dict[str, Marks],
        lock: threading.Lock,
    ):
        self._name, self._folder, self._config = name, folder, config
        self._all_marks, self._lock = marks, lock
        self._marks = marks.setdefault(name, {"run_id": "", "steps": {}, "result": 0})
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._progress = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def put(self, item: Any) -> None:
        if isinstance(item, tuple):
            if self._marks["result"] >= item[0]["steps"]:
                return
        elif item["split"] == "state" or item["step"] <= self._sent(item["split"]):
            return
        self._queue.put(item)
        if not self._thread.ident:
            self._thread.start()

    def close(self) -> None:
        """Waits as long as there is progress."""
        if not self._thread.ident:
            return
        self._queue.put(None)
        while self._thread.is_alive() and self._progress.wait(PATIENCE):
            self._progress.clear()
            self._thread.join(0.01)
        if self._thread.is_alive():
            self._warn(f"no progress for {PATIENCE:.0f} s")

    def _sent(self, split: str) -> int:
        return self._marks["steps"].get(split, 0)

    def _work(self) -> None:
        try:
            self._send_all()
        except BaseException as error:  # each tracker raises errors of its own, SystemExit too
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(lines[0])
        self._progress.set()

    def _send_all(self) -> None:
        kind, _, place = self._name.partition(":")
        try:
            module = importlib.import_module(f"flaxcnn.training.sinks.{kind}_tracker")
        except ModuleNotFoundError as error:
            raise RuntimeError(f"{error.name} is not installed: pip install {kind}") from error
        path = self._folder.path.resolve()
        name = "/".join(path.parts[-2:])  # of a study's runs the last part is the seed
        tracker: Tracker = module.Tracker(place, name, self._config, self._marks["run_id"], path)
        steps = {split: tracker.reached(split) for split in ("train", "validation")}
        steps = {split: max(step, self._sent(split)) for split, step in steps.items()}
        self._mark(run_id=tracker.run_id, steps=steps)
        finished = False
        while (item := self._queue.get()) is not None:
            if isinstance(item, tuple):
                self._send_result(tracker, *item)
                finished = True
            elif item["step"] > self._sent(item["split"]):
                # Before it is sent: a run that is killed in between sends nothing twice.
                self._mark(steps=self._marks["steps"] | {item["split"]: item["step"]})
                tracker.log(item["step"], _numbers(item, f"{item['split']}/"))
            self._progress.set()
        tracker.close(finished)

    def _send_result(self, tracker: Tracker, result: Mapping[str, Any], files: list[Path]) -> None:
        step = result["steps"]
        self._mark(result=step)
        tracker.log(step, _numbers(result, "result/"))
        for file in files:
            tracker.picture(step, file)

    def _mark(self, **values: Any) -> None:
        with self._lock:
            self._marks |= values
            self._folder.write("sinks", self._all_marks)

    def _warn(self, reason: str) -> None:
        print(
            f"WARNING: {self._name} of run.sinks fails ({reason}): training continues without it; "
            "the same command sends what it lacks",
            file=sys.stderr,
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer.name": ...} of a config as a tree of dicts; other values than plain as JSON."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | int | float)
            found[prefix + name] = value if plain else json.dumps(value)
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    numbers: dict[str, float] = {k: x for k, x in values.items() if isinstance(x, int | float)}
    epoch = {"epoch": numbers.pop("epoch")} if "epoch" in numbers else {}
    numbers.pop("step", None)
    return epoch | {prefix + name: value for name, value in numbers.items()}
