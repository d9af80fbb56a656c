"""Detects a rank that makes no progress."""

from collections.abc import Sequence

from launch import processes
from launch.rank import Rank


class StallDetector:
    """Finds the rank that stalls the others.

    Args:
        timeout: seconds without progress after which a rank is stalled.
        now: the current time.
    """

    def __init__(self, timeout: float, now: float):
        self._timeout = timeout
        self._activity = now  # time of the last activity of any rank of the node

    def look(self, ranks: Sequence[Rank], now: float) -> Rank | None:
        """Checks the running ranks. Returns the rank that causes a stall, or None.

        Many programs report no progress. A rank that has never reported a batch counts as active while any rank of its node is
        active, unless SIGSTOP has stopped it.
        """
        for rank in ranks:
            if rank.moved():
                rank.alive_at = self._activity = now
        for rank in ranks:
            if rank.batch is None and not processes.is_stopped(rank.pid):
                rank.alive_at = max(rank.alive_at, self._activity)
        stalled = [rank for rank in ranks if now - rank.alive_at > self._timeout]
        # Ranks wait for each other, so most are victims. The cause is stopped, or is behind the others, or stalled first.
        return min(stalled, key=lambda rank: (not processes.is_stopped(rank.pid), rank.batch or 0, rank.alive_at), default=None)
