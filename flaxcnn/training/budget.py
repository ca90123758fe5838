"""The time that a session has: when to save and end, so that the save is whole before it ends."""

import re
import time

from flaxcnn.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600}
_MARGIN = 1.25  # of what was measured: the next may take longer
_UNMEASURED = 0.05  # share of the budget kept for a save as long as none has been measured
_LEAST = 5.0  # seconds kept in any case, to end the process


def parse_budget(text: str) -> float:
    """Seconds of "90s", "80m" or "11h"; infinity for "". Raises UserError for anything else."""
    if not text:
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise UserError(f'run.budget must be a time such as "90s", "80m" or "11h", got {text!r}')
    return seconds


class Budget:
    """Counts from `started` (of `time.monotonic`; now unless given) up to `text` (see above).

    `is_spent` is asked after each call of some steps, and learns from the times between how long
    the next may take with what comes with it: validation, waiting for the save before, and
    compiling (the first call, the first of another length, the first validation). The longest of
    this epoch and of the one before counts, so that compiling is kept in reserve until it is over.
    """

    def __init__(self, text: str, started: float | None = None):
        self.text, self._seconds = text, parse_budget(text)
        self._asked = time.monotonic()
        self._started = self._asked if started is None else started
        self._longest = self._longest_before = 0.0

    def begin(self) -> None:
        """The first call begins now: what it took to come here is no measure of a call."""
        self._asked = time.monotonic()

    def is_spent(self, saving: float, *, epoch_ended: bool = False) -> bool:
        """Whether another call could be one too many.

        `saving`: how many seconds a save took, with its copy on the mirror; 0 if not known yet.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._asked)
        self._asked = now
        spent = now - self._started + self._reserve(saving) > self._seconds
        if epoch_ended:
            self._longest_before, self._longest = self._longest, 0.0
        return spent

    def _reserve(self, saving: float) -> float:
        """Seconds that are kept for the next call, the save after it, and the end."""
        if self._seconds == float("inf"):
            return 0.0
        call = max(self._longest, self._longest_before)
        return _MARGIN * (call + saving) + (0 if saving else _UNMEASURED * self._seconds) + _LEAST
