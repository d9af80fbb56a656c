"""How long batches take, and how much of that is training. It needs neither Keras nor files nor a clock."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class BatchTimes:
    """The seconds of the batches of one process, without the first one, which is traced.

    Args:
        batches: `[count, seconds]`.
        beside: the same for the batches during which a checkpoint was being written.
        sampled: `[seconds waiting for data, seconds of the batches]` for a sample of batches, without the first of each epoch.

    Example:

    >>> times = BatchTimes()
    >>> times.add(1, seconds=2.0, waited=0.5)
    2.0
    >>> times.training
    1.5
    """

    batches: Sequence[float] = (0, 0.0)
    beside: Sequence[float] = (0, 0.0)
    sampled: Sequence[float] = (0.0, 0.0)

    def add(
        self, count: int, seconds: float, waited: float | None = None, *, begins_epoch: bool = False, beside_write: bool = False
    ) -> float:
        """Adds batches.

        Args:
            count: the number of batches.
            seconds: how long they took.
            waited: the seconds of these in which training waited for data; None if not measured.
            begins_epoch: whether this is the first batch of an epoch. Its wait says nothing about other batches.
            beside_write: whether a checkpoint was being written meanwhile.

        Returns:
            The seconds that were added, without a wait for the first batch of an epoch.
        """
        waited = None if waited is None else min(max(waited, 0.0), seconds)
        if begins_epoch:
            seconds -= waited or 0.0
        elif waited is not None:
            self.sampled = _sum(self.sampled, waited, seconds)
        self.batches = _sum(self.batches, count, seconds)
        if beside_write:
            self.beside = _sum(self.beside, count, seconds)
        return seconds

    @property
    def waiting(self) -> float:
        """The seconds of waiting for data, estimated from the sample."""
        waited, of = self.sampled
        return self.batches[1] * waited / of if of else 0.0

    @property
    def slower(self) -> float:
        """The extra seconds of the batches during which a checkpoint was being written."""
        (count, seconds), (beside, beside_seconds) = self.batches, self.beside
        quiet = (seconds - beside_seconds) / (count - beside) if count > beside else 0.0
        return min(max(beside_seconds - beside * quiet, 0.0), seconds - self.waiting) if quiet else 0.0

    @property
    def training(self) -> float:
        """The seconds of training: without waiting for data, and without what was slower beside writes."""
        return self.batches[1] - self.waiting - self.slower


def _sum(pair: Sequence[float], *more: float) -> Sequence[float]:
    return [each + further for each, further in zip(pair, more, strict=True)]
