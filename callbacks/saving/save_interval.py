"""Computes how many seconds to leave between two checkpoints, from times that the caller reports and nothing else."""

import math
import time
from collections.abc import Callable
from typing import Any

PRIOR_COST = 0.1  # seconds of a save before the first one is measured
PRIOR_FAILURES, PRIOR_SECONDS = 1, 86_400.0  # assumes one failure in a day before the run began
_FORGET = 0.8  # weight of earlier measurements, applied at each save
_WORTH_REPORTING = 2.0  # ratio of two intervals
_LARGEST = 1e15  # seconds or batches of a run
_SHARE = 0.5  # part of the remaining time until the next check


class SaveInterval:
    """Chooses the seconds between two checkpoints from their cost and from how often the run fails.

    A save costs the seconds that training stands still, plus the seconds that batches take longer while its file is written. A
    failure costs the training since the last save. The sum is smallest at an interval of sqrt(2 x cost x mean time between
    failures). If that costs more than the budget, the interval is the shortest that the budget allows.

    The mean time between failures is estimated from the failures over all restarts and a prior of one failure a day.

    Args:
        max_overhead: the share of time that saves may cost, 0.01 for 1 %.
        clock: returns seconds since any fixed moment.

    Example:

    >>> interval = SaveInterval(max_overhead=0.01)
    >>> interval.begin()
    >>> interval.saved()
    >>> interval.note_blocked(0.5)
    >>> round(interval.seconds)  # sqrt(2 * 0.5 * 86400)
    294

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval", https://doi.org/10.1145/361147.361115;
    Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps", section 2,
    https://doi.org/10.1016/j.future.2004.11.016.
    """

    def __init__(self, max_overhead: float, clock: Callable[[], float] = time.monotonic):
        self._max_overhead, self._clock = max_overhead, clock
        self.begin()

    def begin(self) -> None:
        """Starts a training and forgets the measurements of an earlier one. `set_state` restores them."""
        self._began = self._saved_at = self._clock()
        self._earlier_seconds, self._failures = 0.0, 0
        self._saves = self._blocked = 0.0
        self._batches = {False: 0.0, True: 0.0}  # while no file is written, and while one is
        self._seconds = {False: 0.0, True: 0.0}
        self._seen = 0  # batches of this training
        self._is_first = True
        self._reported: float | None = None

    def get_state(self, is_last: bool) -> dict[str, Any]:
        """Returns the measurements for a checkpoint, as plain data.

        Args:
            is_last: whether training ends with this checkpoint, so that a restart loses nothing.
        """
        return {
            "seconds": self._exposure,
            "failures": self._failures,
            "is_last": is_last,
            "saves": self._saves,
            "blocked": self._blocked,
            "batches": [self._batches[False], self._batches[True]],
            "batch_seconds": [self._seconds[False], self._seconds[True]],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the measurements. A checkpoint that was not the last of its process counts as a failure.

        Raises:
            KeyError, TypeError, ValueError: if it is not a state of `get_state`; anybody may have written the file.
        """
        self._earlier_seconds = _amount(state["seconds"])
        self._failures = int(_amount(state["failures"])) + (not state["is_last"])
        self._saves, self._blocked = int(_amount(state["saves"])), _amount(state["blocked"])
        self._batches = dict(zip((False, True), map(int, map(_amount, state["batches"])), strict=True))
        self._seconds = dict(zip((False, True), map(_amount, state["batch_seconds"]), strict=True))

    def end_batches(self, batches: int, seconds: float, beside_write: bool) -> None:
        """Notes how long batches took. The first ones of a training do not count, since they are compiled.

        Args:
            batches: the number of batches.
            seconds: their total duration.
            beside_write: whether a checkpoint was being written meanwhile.
        """
        self._seen += batches
        if self._is_first:
            self._is_first = False
            return
        self._batches[beside_write] += batches
        self._seconds[beside_write] += seconds

    def saved(self) -> None:
        """Notes that the state was saved now."""
        self._saved_at = self._clock()
        self._saves = self._saves * _FORGET + 1
        self._blocked *= _FORGET
        for kind in (False, True):
            self._batches[kind] *= _FORGET
            self._seconds[kind] *= _FORGET

    def note_blocked(self, seconds: float) -> None:
        """Notes how long training stood still for the previous save."""
        self._blocked += seconds

    @property
    def cost(self) -> float:
        """The cost of a save in seconds: a mean over the last saves."""
        if not self._saves:
            return PRIOR_COST
        slower = self._seconds[True] - self._batches[True] * self._batch_seconds
        return (self._blocked + max(slower, 0.0)) / self._saves

    @property
    def between_failures(self) -> float:
        """The estimated mean time between failures, in seconds."""
        return (PRIOR_SECONDS + self._exposure) / (PRIOR_FAILURES + self._failures)

    @property
    def seconds(self) -> float:
        """The interval in seconds. The first save comes as early as the budget allows, to measure the cost."""
        within_budget = self.cost / self._max_overhead
        return max(within_budget, math.sqrt(2 * self.cost * self.between_failures)) if self._saves else within_budget

    def is_due(self, is_writing: bool) -> bool:
        """Returns whether the interval is over.

        Args:
            is_writing: whether a checkpoint is still being written. No checkpoint is due then.
        """
        return not is_writing and self._left <= 0

    def batches_to_next_check(self, is_writing: bool) -> int:
        """Returns the number of batches until the caller should ask `is_due` again.

        They take half the remaining time, because batches may become slower, and are never more than the batches so far.

        Args:
            is_writing: whether a checkpoint is still being written.
        """
        age = self._clock() - self._saved_at
        left = max(self._left, age / 4) if is_writing else self._left
        pace = self._batch_seconds
        wanted = math.floor(left * _SHARE / pace) if pace > 0 else 1
        return max(1, min(wanted, self._seen))

    def report(self) -> str | None:
        """Returns a line for the user after the first save and when the interval has changed by a factor of 2; else None."""
        if not self._saves or (self._reported and 1 / _WORTH_REPORTING < self.seconds / self._reported < _WORTH_REPORTING):
            return None
        self._reported = self.seconds
        return (
            f"Saving every {_rounded(self.seconds)}: a save costs {_rounded(self.cost)}; failures: {self._failures} in "
            f"{_rounded(self._exposure)}, plus an assumed {PRIOR_FAILURES} in {_rounded(PRIOR_SECONDS)}."
        )

    @property
    def _exposure(self) -> float:
        return self._earlier_seconds + self._clock() - self._began

    @property
    def _left(self) -> float:
        return self._saved_at + self.seconds - self._clock()

    @property
    def _batch_seconds(self) -> float:
        """The mean duration of a batch without a write beside it; of any batch if there is none yet."""
        if self._batches[False]:
            return self._seconds[False] / self._batches[False]
        return self._seconds[True] / self._batches[True] if self._batches[True] else 0.0


def _amount(value: float) -> float:
    """Returns a number of seconds or batches from a checkpoint.

    Raises:
        ValueError: if it is negative, or so large that arithmetic with it fails.
    """
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"it has {value!r:.50} seconds or batches")
    return float(value)


def _rounded(seconds: float) -> str:
    """Returns a duration as text: 3 ms, 41 s, 12 min, 30 h."""
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.0f} h"
