"""Which rank made no progress for too long."""

from collections.abc import Sequence

from launch import processes
from launch.rank import Rank


class StallDetector:
    """Finds the rank that holds up the others.

    Args:
        timeout: seconds without progress.
        now: the clock's time at the start.
    """

    def __init__(self, timeout: float, now: float):
        self._timeout = timeout
        self._activity = now  # when any rank of the node last did something

    def look(self, ranks: Sequence[Rank], now: float) -> Rank | None:
        """Looks at the ranks that live. Returns the cause of a stall, or None.

        Many programs report nothing: a rank that never reported a batch counts as alive as long as any rank of its node moves,
        unless it was stopped.
        """
        for rank in ranks:
            if rank.moved():
                rank.alive_at = self._activity = now
        for rank in ranks:
            if rank.batch is None and not processes.is_stopped(rank.pid):
                rank.alive_at = max(rank.alive_at, self._activity)
        stalled = [rank for rank in ranks if now - rank.alive_at > self._timeout]
        # Ranks wait for each other, so most are victims: the cause was stopped, or is behind, or was the first to be silent.
        return min(stalled, key=lambda rank: (not processes.is_stopped(rank.pid), rank.batch or 0, rank.alive_at), default=None)
