"""When a checkpoint is due. No file, no model and no device: only counters that the caller reports, and a clock."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from callbacks.save_interval import SaveInterval


def next_multiple(batch: int, every: int) -> int:
    """Returns the first multiple of `every` above `batch`."""
    return (batch // every + 1) * every


class SavePolicy:
    """Decides when a checkpoint is due: after so many batches, after so many seconds, at the end of an epoch, or by its cost.

    The caller compares its batch counter with the attributes, so that it reads the device only where a save may be due.

    Args:
        save_freq: `"epoch"`, `"auto"`, or global batches between two checkpoints.
        save_secs: seconds between two checkpoints; None if time alone makes none due.
        max_overhead: for `"auto"`, the share of time that checkpoints may cost.
        clock: returns seconds since any fixed moment.

    Attributes:
        next_batch: `look` has to be asked at the first boundary at or after this batch; infinity for `"epoch"`.
        saved_batch: the batch that was saved last, or that training began at.
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
        """Starts at a batch whose state needs no checkpoint: training begins there, or it was just restored."""
        self._is_postponed = self.ends = False
        self.saved_batch, self._saved_at = batch, self.clock()
        self.next_batch = batch + 1 if self.interval else self._next_multiple(batch)
        if self.interval:
            self.interval.begin()

    def saved(self, batch: int) -> None:
        """Notes that the state after this batch was saved. Seconds count from here."""
        self.saved_batch, self._saved_at = batch, self.clock()
        if self.interval:
            self.interval.saved()

    def look(self, batch: int, is_writing: bool) -> dict[str, Any]:
        """Decides at a batch, which is `next_batch` or a later one. Several ranks follow the chief's decision.

        Args:
            batch: the batch.
            is_writing: whether a checkpoint is still being written.

        Returns:
            Whether a checkpoint is due, and the `next_batch` to look at after this one.
        """
        if self.interval is None:
            return {"is_due": True, "next_batch": self._next_multiple(batch)}
        is_due = self.interval.is_due(is_writing)
        return {"is_due": is_due, "next_batch": batch + (1 if is_due else self.interval.batches_to_next_look(is_writing))}

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as plain data: under `"auto"`, what saves and failures have shown."""
        return self.interval.get_state(self.ends) if self.interval else {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned; to be called after `begin`."""
        if self.interval and state:
            self.interval.set_state(state)

    def postpone(self) -> None:
        """Notes that a checkpoint was due, but its name needs a metric that the next validation will bring."""
        self._is_postponed = True

    @property
    def may_be_due_by_time(self) -> bool:
        """Whether the clock can make a checkpoint due."""
        return self._save_secs is not None

    def is_due_by_time(self) -> bool:
        """Whether the last checkpoint is `save_secs` old. Several ranks follow one clock, the chief's."""
        return self._save_secs is not None and self.clock() - self._saved_at >= self._save_secs

    def still_to_come(self, params: Mapping[str, Any] | None, batch: int) -> tuple[float, float]:
        """Returns the most checkpoints that a training still makes, and the batches that it still trains on; infinity if unknown.

        Args:
            params: what Keras tells callbacks of the `fit`: `epochs` and `steps`.
            batch: where it stands.
        """
        epochs, steps = ((params or {}).get(name) or math.inf for name in ("epochs", "steps"))
        batches = max(epochs * steps - batch, 0)
        if self._save_secs is not None or self.interval:
            return math.inf, batches
        if not math.isfinite(steps):
            return (math.inf if self._every else epochs), batches
        return batches // (self._every or steps) + 1, batches

    def is_due_after_epoch(self) -> bool:
        """Whether the end of this epoch makes a checkpoint due; to be called once in each epoch."""
        is_postponed, self._is_postponed = self._is_postponed, False
        return is_postponed or self._after_epoch

    def _next_multiple(self, batch: int) -> float:
        return math.inf if self._every is None else next_multiple(batch, self._every)
