"""`flaxcnn predict` on a video file or a camera: frame by frame, a batch ahead of the device."""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import cv2
import jax
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training.predictor import Predictor

_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_CAMERA = "camera:"
_BATCH = 8  # frames that are computed together; a camera's are answered so many late
_RATE = 25.0  # frames per second of an annotated video whose source does not say


def is_video(name: str) -> bool:
    """Whether an argument is a video file by its name, or a camera."""
    return name.startswith(_CAMERA) or Path(name).suffix.lower() in _SUFFIXES


def run_video(args: argparse.Namespace, predictor: Predictor) -> int:
    """Answers of each frame as lines of JSON, on stdout or with --out in DIR/NAME.jsonl.

    With --out there is DIR/NAME.mp4, too, if the task draws its answers. Frames per second go to
    stderr. Ctrl-C ends a camera.
    """
    (name,) = args.images if len(args.images) == 1 else (None,)
    if name is None:
        raise UserError("a video or a camera is predicted alone, not with other files")
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames must be at least 1, got {args.frames}")
    task, most = predictor.task, args.top or predictor.task.listed
    frames = read_frames(name, args.frames)
    count, begun, shown = 0, 0.0, 0.0
    with contextlib.ExitStack() as stack:
        lines, video = _open(args.out, name, stack), None
        with contextlib.suppress(KeyboardInterrupt):
            for number, rate, frame, answer in predict_frames(predictor, name, frames, args.resize):
                entry = {"frame": number, "seconds": number / rate}
                print(json.dumps(entry | {"top": task.describe(answer, most)}), file=lines)
                drawn = task.annotate(frame, answer) if args.out else None
                if drawn is not None:
                    video = video or _Video(_name(args.out, name, ".mp4"), rate, drawn, stack)
                    video.write(drawn)
                count += 1
                begun = begun or time.perf_counter()  # nothing is compiled any more
                if (now := time.perf_counter()) - shown > 1:
                    shown = now
                    print(f"\r{count} frames, {_rate(count, now - begun):.1f} frames/s", end="",
                          file=sys.stderr, flush=True)  # fmt: skip
    if not count:
        raise UserError(f"{name} has no frame that can be read")
    rate = _rate(count, time.perf_counter() - begun)
    print(f"\r{name}: {count} frames, {rate:.1f} frames/s", file=sys.stderr)
    return DONE


def _rate(count: int, seconds: float) -> float:
    """Frames per second since the first one's answer."""
    return (count - 1) / seconds if seconds > 0 else 0.0


def read_frames(name: str, most: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """(frames per second, frame uint8 [H, W, 3] in RGB) of a file or of "camera:0", in order.

    Raises UserError if it cannot be opened.
    """
    source: Any = name
    if name.startswith(_CAMERA):
        source = name.removeprefix(_CAMERA)
        if not source.isdigit():
            raise UserError(f"{name}: a camera has a number, as camera:0")
        source = int(source)
    elif not Path(name).is_file():
        raise UserError(f"there is no {name}")
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise UserError(f"{name} cannot be opened as a video")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _RATE
        count = 0
        while most is None or count < most:
            good, frame = capture.read()
            if not good:
                return
            count += 1
            yield rate, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def predict_frames(
    predictor: Predictor,
    name: str,
    frames: Iterator[tuple[float, np.ndarray]],
    resize: str | None = None,
) -> Iterator[tuple[int, float, np.ndarray, Any]]:
    """Each frame's number, the rate, the frame and its answer in the frame's own pixels.

    While a batch is computed, the one before it is handed out: two are in memory, never more.
    """
    preprocessing = predictor.preprocessing
    if resize:
        preprocessing = dataclasses.replace(preprocessing, resize=resize)

    def fit(frame: np.ndarray) -> np.ndarray:
        if preprocessing.channels == 1:
            frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
        return preprocessing.take(name, frame)

    size = min(_BATCH, predictor.batch_size)
    number, waiting = 0, None
    while True:
        batch = []
        for item in frames:
            batch.append(item)
            if len(batch) == size:
                break
        submitted = None
        if batch:
            submitted = predictor.submit(np.stack([fit(frame) for _, frame in batch]))
        if waiting is not None:
            answers = jax.device_get(waiting[1])
            for index, (rate, frame) in enumerate(waiting[0]):
                answer = jax.tree.map(lambda x, i=index: x[i], answers)
                if predictor.task.places:
                    answer = predictor.fit_answer(answer, frame.shape[:2], resize)
                yield number, rate, frame, answer
                number += 1
        if not batch:
            return
        waiting = batch, submitted


def _name(out: str, name: str, suffix: str) -> Path:
    return Path(out, Path(name.replace(":", "")).stem + suffix)


def _open(out: str, name: str, stack: contextlib.ExitStack) -> TextIO:
    """Where lines go."""
    if not out:
        return sys.stdout
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        return stack.enter_context(open(_name(out, name, ".jsonl"), "w", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error


class _Video:
    """A file that frames of the size of the first are added to."""

    def __init__(self, file: Path, rate: float, first: np.ndarray, stack: contextlib.ExitStack):
        height, width = first.shape[:2]
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(file), fourcc, rate, (width, height))
        if not self._writer.isOpened():
            raise UserError(f"--out {file}: a video of {width}x{height} cannot be written there")
        stack.callback(self._writer.release)

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame uint8 [H, W, 3] in RGB."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
