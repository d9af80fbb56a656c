"""Decides when a checkpoint is due, from counters that the caller reports, a clock and nothing else."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from callbacks.counts import Counts, next_multiple
from callbacks.saving.save_interval import SaveInterval


class SavePolicy:
    """Decides when a checkpoint is due: after a number of batches or seconds, at the end of an epoch, or by the cost of saves.

    The caller compares its batch counter with `next_batch`, so that it reads the device only when a save may be due.

    Args:
        save_freq: `"epoch"`, `"auto"`, or global batches between two checkpoints.
        save_secs: seconds between two checkpoints; None to ignore the time.
        max_overhead: for `"auto"`, the largest share of time that checkpoints may cost.
        clock: returns seconds since any fixed moment.

    Attributes:
        next_batch: the caller has to call `decide` at the first boundary at or after this batch; infinity for `"epoch"`.
        saved_batch: the batch of the last save, or the batch at which training began.
        ends: whether training ends with the next save, as far as the caller knows.
        clock: as given.
        interval: the seconds between two checkpoints under `"auto"`; None otherwise.

    Example:

    >>> policy = SavePolicy(save_freq=50)
    >>> policy.begin(batch=120)
    >>> policy.next_batch
    150
    """

    next_batch: float

    def __init__(
        self,
        save_freq: int | str,
        save_secs: float | None = None,
        max_overhead: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every = save_freq if isinstance(save_freq, int) else None  # batches
        self._after_epoch = save_freq == "epoch"
        self.interval = SaveInterval(max_overhead, clock) if save_freq == "auto" else None
        self._save_secs, self.clock = save_secs, clock
        self.begin(0)

    def begin(self, batch: int) -> None:
        """Starts at a batch that needs no checkpoint, since training begins there or a checkpoint was just restored."""
        self._is_postponed = self.ends = False
        self.saved_batch, self._saved_at = batch, self.clock()
        self.next_batch = batch + 1 if self.interval else self._next_multiple(batch)
        if self.interval:
            self.interval.begin()

    def saved(self, batch: int) -> None:
        """Notes that the state after this batch was saved, and restarts the seconds."""
        self.saved_batch, self._saved_at = batch, self.clock()
        if self.interval:
            self.interval.saved()

    def decide(self, batch: int, is_writing: bool) -> dict[str, Any]:
        """Decides at a batch at or after `next_batch`. All ranks follow the chief's decision.

        Args:
            batch: the batch counter.
            is_writing: whether a checkpoint is still being written.

        Returns:
            Whether a checkpoint is due (`is_due`), and the new `next_batch`.
        """
        if self.interval is None:
            return {"is_due": True, "next_batch": self._next_multiple(batch)}
        is_due = self.interval.is_due(is_writing)
        return {"is_due": is_due, "next_batch": batch + (1 if is_due else self.interval.batches_to_next_check(is_writing))}

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as plain data: under `"auto"`, the measurements of saves and failures."""
        return self.interval.get_state(self.ends) if self.interval else {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state. Call it after `begin`."""
        if self.interval and state:
            self.interval.set_state(state)

    def postpone(self) -> None:
        """Notes that a checkpoint is due but has to wait for a metric of the next validation."""
        self._is_postponed = True

    @property
    def may_be_due_by_time(self) -> bool:
        """Whether the policy has `save_secs`."""
        return self._save_secs is not None

    def is_due_by_time(self) -> bool:
        """Returns whether the last checkpoint is `save_secs` old. All ranks follow the chief's clock."""
        return self._save_secs is not None and self.clock() - self._saved_at >= self._save_secs

    def still_to_come(self, params: Mapping[str, Any] | None, batch: int) -> tuple[float, float]:
        """Returns the largest number of checkpoints to come and the number of batches to come; infinity if unknown.

        Args:
            params: the `params` that Keras gives to callbacks: `epochs` and `steps`.
            batch: the batch counter.
        """
        epochs, steps = ((params or {}).get(name) or math.inf for name in ("epochs", "steps"))
        batches = max(epochs * steps - batch, 0)
        if self._save_secs is not None or self.interval:
            return math.inf, batches
        if not math.isfinite(steps):
            return (math.inf if self._every else epochs), batches
        return batches // (self._every or steps) + 1, batches

    def planned(self, params: Mapping[str, Any] | None, counts: Counts, begin: Counts, per_execution: int) -> Iterator[Counts]:
        """Yields batch, epoch and replicas of each checkpoint to come whose batch is known; none if the length is unknown.

        Args:
            params: the `params` that Keras gives to callbacks: `epochs` and `steps`.
            counts: the counters.
            begin: batch and epoch at the beginning of the first epoch of this `fit`.
            per_execution: the batches of an execution. A checkpoint is due at the end of one.
        """
        epochs, steps = ((params or {}).get(name) or 0 for name in ("epochs", "steps"))
        if (last := begin.batch + (epochs - begin.epoch + 1) * steps) <= counts.batch:
            return
        zero, every = (begin.batch, steps) if self._after_epoch else (0, self._every or last)
        first = zero + next_multiple(counts.batch - zero, every)
        for at in itertools.chain(range(first, last, every), [last]):
            epoch, in_epoch = divmod(at - 1 - begin.batch, steps)
            boundary = min((in_epoch // per_execution + 1) * per_execution, steps)
            yield Counts(batch=begin.batch + epoch * steps + boundary, epoch=begin.epoch + epoch, replicas=counts.replicas)

    def is_due_after_epoch(self) -> bool:
        """Returns whether a checkpoint is due at the end of this epoch. Call it once in each epoch."""
        is_postponed, self._is_postponed = self._is_postponed, False
        return is_postponed or self._after_epoch

    def _next_multiple(self, batch: int) -> float:
        return math.inf if self._every is None else next_multiple(batch, self._every)
