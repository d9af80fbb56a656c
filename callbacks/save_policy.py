"""When a checkpoint is due. No file, no model and no device: only counters that the caller reports, and a clock."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any


def next_multiple(batch: int, every: int) -> int:
    """Returns the first multiple of `every` above `batch`."""
    return (batch // every + 1) * every


class SavePolicy:
    """Decides when a checkpoint is due: after so many batches, after so many seconds, or at the end of an epoch.

    The caller compares its batch counter with the attributes, so that it reads the device only where a save may be due.

    Args:
        save_freq: `"epoch"`, or global batches between two checkpoints.
        save_secs: seconds between two checkpoints; None if time alone makes none due.
        clock: returns seconds since any fixed moment.

    Attributes:
        next_batch: a checkpoint is due at the first boundary at or after this batch; infinity for `"epoch"`.
        saved_batch: the batch that was saved last, or that training began at.

    Example:

    >>> policy = SavePolicy(save_freq=50)
    >>> policy.begin(batch=120)
    >>> policy.next_batch
    150
    """

    next_batch: float

    def __init__(self, save_freq: int | str, save_secs: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._every = save_freq if isinstance(save_freq, int) else None  # batches
        self._save_secs, self._clock = save_secs, clock
        self.begin(0)

    def begin(self, batch: int) -> None:
        """Starts at a batch whose state needs no checkpoint: training begins there, or it was just restored."""
        self._is_postponed = False
        self.saved(batch)
        self.pass_batch(batch)

    def saved(self, batch: int) -> None:
        """Notes that the state after this batch was saved. Seconds count from here."""
        self.saved_batch, self._saved_at = batch, self._clock()

    def pass_batch(self, batch: int) -> None:
        """Sets `next_batch` to the first one after this batch, whether this one was saved or not."""
        self.next_batch = math.inf if self._every is None else next_multiple(batch, self._every)

    def postpone(self) -> None:
        """Notes that a checkpoint was due, but its name needs a metric that the next validation will bring."""
        self._is_postponed = True

    @property
    def may_be_due_by_time(self) -> bool:
        """Whether the clock can make a checkpoint due."""
        return self._save_secs is not None

    def is_due_by_time(self) -> bool:
        """Whether the last checkpoint is `save_secs` old. Several ranks follow one clock, the chief's."""
        return self._save_secs is not None and self._clock() - self._saved_at >= self._save_secs

    def still_to_come(self, params: Mapping[str, Any] | None, batch: int) -> tuple[float, float]:
        """Returns the most checkpoints that a training still makes, and the batches that it still trains on; infinity if unknown.

        Args:
            params: what Keras tells callbacks of the `fit`: `epochs` and `steps`.
            batch: where it stands.
        """
        epochs, steps = ((params or {}).get(name) or math.inf for name in ("epochs", "steps"))
        batches = max(epochs * steps - batch, 0)
        if self._save_secs is not None:
            return math.inf, batches
        if not math.isfinite(steps):
            return (math.inf if self._every else epochs), batches
        return batches // (self._every or steps) + 1, batches

    def is_due_after_epoch(self) -> bool:
        """Whether the end of this epoch makes a checkpoint due; to be called once in each epoch."""
        is_postponed, self._is_postponed = self._is_postponed, False
        return is_postponed or self._every is None
