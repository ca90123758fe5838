"""Ctrl-C and SIGTERM as a request that long work answers when it is safe to."""

import signal
import threading
import types
from typing import Any

from flaxcnn.exit_status import INTERRUPTED, STOPPED


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request that long work answers where it can stop.

    A second one acts as it would have without us. Outside the main thread, where Python allows no
    handlers, signals stay as they are. One within another asks both.
    """

    def __init__(self):
        self.requested = False
        self.status = STOPPED  # what a command that was stopped ends with
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
        self.status = INTERRUPTED if number == signal.SIGINT else STOPPED
        outer = getattr(self._before[number], "__self__", None)
        self._restore()
        if isinstance(outer, StopSignal):
            outer._request(number, frame)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        if not self.requested:
            self._restore()
