"""Finds the rank that the others wait for, from the durations of batches on each rank."""

from collections import deque
from collections.abc import Sequence

WINDOWS = 10
THRESHOLD = 0.1


class SlowestRank:
    """Finds a rank that is slowest by more than a threshold in most of the last windows. It reports each rank once.

    Example:

    >>> slowest = SlowestRank()
    >>> [slowest.note([1.0, 1.3]) for _ in range(7)]
    [None, None, None, None, None, 1, None]
    """

    def __init__(self) -> None:
        self._last: deque[int | None] = deque(maxlen=WINDOWS)
        self._reported: set[int] = set()

    def note(self, seconds: Sequence[float]) -> int | None:
        """Notes a window.

        Args:
            seconds: the duration of a batch on each rank, without waiting for other ranks.

        Returns:
            A rank to report; None if there is none, or if it was reported before.
        """
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        self._last.append(slowest if excess(seconds, slowest) > THRESHOLD else None)
        if self._last.count(slowest) * 2 <= WINDOWS or slowest in self._reported:
            return None
        self._reported.add(slowest)
        return slowest


def excess(seconds: Sequence[float], rank: int) -> float:
    """Returns how much slower a rank is, as a part of the median of the other ranks; below 0 if it is faster."""
    others = sorted([*seconds[:rank], *seconds[rank + 1 :]])
    median = others[len(others) // 2] if others else 0.0
    return seconds[rank] / median - 1 if median else 0.0


def verdict(seconds: Sequence[float], rank: int, host: str) -> str:
    """Returns the warning about a rank."""
    return (
        f"The other ranks wait for rank {rank} on {host}: it was the slowest by more than {THRESHOLD:.0%} in most of the last "
        f"{WINDOWS} points of the curves, now by {excess(seconds, rank):.0%} ({1e3 * seconds[rank]:.3g} ms for a batch)."
    )
