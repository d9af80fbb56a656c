"""Detects the rank that the others wait for: it is stopped, or makes no progress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch import processes
from launch.node.rank import Rank

STOPPED = 5.0  # seconds after which a stopped rank ends a run of several ranks
LONGEST_PAUSE = 1.0  # seconds between two checks; after a longer pause, this process was stopped too


@dataclass(frozen=True)
class Stall:
    """A rank that the others wait for.

    Args:
        rank: the rank.
        stopped: whether SIGSTOP has stopped it.
        seconds: how long it has been stopped, or has made no progress.
    """

    rank: Rank
    stopped: bool
    seconds: float


class StallDetector:
    """Finds the rank that stalls the others. Time during which nobody checks does not count, so a job may be suspended as a whole.

    Args:
        timeout: seconds without progress after which a rank is stalled; None: never.
        stopped_timeout: seconds after which a stopped rank is stalled; None: never. A rank that a debugger holds is not stopped.
        now: the current time.
    """

    def __init__(self, timeout: float | None, stopped_timeout: float | None, now: float):
        self._timeout, self._stopped_timeout = timeout or math.inf, stopped_timeout or math.inf
        self._checked_at, self._watched = now, 0.0  # seconds of checks so far, the time of everything below
        self._active_at: dict[int, float] = {}  # by rank: its last activity
        self._running_at: dict[int, float] = {}  # by rank: when it was last seen running
        self._any_active_at = 0.0

    def look(self, ranks: Sequence[Rank], now: float) -> Stall | None:
        """Checks the running ranks. Returns the cause of a stall, or None.

        Many programs report no progress. A rank that has never reported a batch counts as active while any rank of its node is
        active, unless SIGSTOP has stopped it.
        """
        self._watched += min(now - self._checked_at, LONGEST_PAUSE)
        self._checked_at = now
        stopped = {rank.number for rank in ranks if processes.is_stopped(rank.pid)}
        self._note(ranks, stopped)
        silent = {rank.number for rank in ranks if self._since(self._active_at, rank) > self._timeout}
        held = {rank.number for rank in ranks if self._since(self._running_at, rank) > self._stopped_timeout}
        if not silent | held:
            return None
        # Ranks wait for each other, so most are victims. The cause is stopped, or is behind the others, or stalled first.
        cause = min(
            (rank for rank in ranks if rank.number in silent | held | stopped),
            key=lambda rank: (rank.number not in stopped, rank.batch or 0, -self._since(self._active_at, rank)),
        )
        seconds = self._stopped_timeout if cause.number in held else self._timeout
        return Stall(cause, cause.number in stopped, seconds)

    def _note(self, ranks, stopped):
        for rank in ranks:
            if rank.moved():
                self._active_at[rank.number] = self._any_active_at = self._watched
            if rank.number not in stopped:
                self._running_at[rank.number] = self._watched
        for rank in ranks:
            if rank.batch is None and rank.number not in stopped:
                self._active_at[rank.number] = max(self._active_at.get(rank.number, 0.0), self._any_active_at)

    def _since(self, times, rank):
        return self._watched - times.get(rank.number, 0.0)
