"""Which rank the others wait for. Nothing here knows Keras or processes: only how long each rank took."""

from collections import deque
from collections.abc import Sequence

WINDOWS = 10
THRESHOLD = 0.1


class SlowestRank:
    """Finds a rank that is slowest in most of the last windows by more than a threshold. Names each rank once.

    Example:

    >>> slowest = SlowestRank()
    >>> [slowest.note([1.0, 1.3]) for _ in range(7)]
    [None, None, None, None, None, 1, None]
    """

    def __init__(self) -> None:
        self._last: deque[int | None] = deque(maxlen=WINDOWS)
        self._named: set[int] = set()

    def note(self, seconds: Sequence[float]) -> int | None:
        """Notes a window.

        Args:
            seconds: how long each rank took for a batch, without waiting for others.

        Returns:
            A rank to name; None if there is none, or if it was named before.
        """
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        self._last.append(slowest if excess(seconds, slowest) > THRESHOLD else None)
        if self._last.count(slowest) * 2 <= WINDOWS or slowest in self._named:
            return None
        self._named.add(slowest)
        return slowest


def excess(seconds: Sequence[float], rank: int) -> float:
    """Returns by which part of the median of the other ranks this rank is slower; below 0 if it is faster."""
    others = sorted([*seconds[:rank], *seconds[rank + 1 :]])
    median = others[len(others) // 2] if others else 0.0
    return seconds[rank] / median - 1 if median else 0.0


def verdict(seconds: Sequence[float], rank: int, host: str) -> str:
    """Returns what to tell the user about a rank to name."""
    return (
        f"Rank {rank} on {host} is what the other ranks wait for: in most of the last {WINDOWS} points of the curves it was the "
        f"slowest by more than {THRESHOLD:.0%}, now by {excess(seconds, rank):.0%} ({1e3 * seconds[rank]:.3g} ms for a batch)."
    )
