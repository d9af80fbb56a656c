"""Finishes an epoch that an earlier process began.

Keras runs whole epochs only. So `fit` runs the epoch from its first batch, and executions of batches that are trained on already
return the restored logs without training. The data starts after these batches (`data_position.py`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from callbacks.counting.counters import counters_of
from callbacks.counting.data_position import data_position_of
from callbacks.counting.long_loops import UNNAMED, bounded
from callbacks.counting.metric_results import metric_results
from callbacks.counts import Counts
from callbacks.model.attached import attach, attached
from callbacks.model.fit_hooks import fit_hooks_of, is_of_train_on_batch


class ResumedEpoch:
    """Skips the batches of a resumed epoch that are trained on already. `resumed_epoch_of(model)` makes it.

    Attributes:
        batches_per_epoch: the number of batches that `fit` plans for an epoch; None if unknown.
        begins_at: the 0-based batch at which a custom training loop begins the epoch.
        is_repeating: whether callbacks run hooks that an earlier process has run already.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._counters = counters_of(model)
        self._hooks = fit_hooks_of(model)
        self.batches_per_epoch: int | None = None
        self.begins_at = 0
        self.is_repeating = False
        self._executions_to_skip: Iterator[int] | None = None  # known at the first execution
        self._path = UNNAMED  # of the checkpoint, for messages
        self._logs: dict[str, Any] = {}
        self._restore_metrics: Callable[[], None] = lambda: None
        self._hooks.around_execution(self._execute)
        self._hooks.instead_of_execution(self._skip)

    def resume(self, counts: Counts, logs: dict[str, Any], restore_metrics: Callable[[], None], path: str = UNNAMED) -> None:
        """Sets the counters to those of a checkpoint, so that the next `fit` finishes its epoch.

        Args:
            counts: the counters of the checkpoint.
            logs: the last logs that Keras reported before the checkpoint.
            restore_metrics: restores the model's running metrics; called after `fit` has reset them.
            path: the path of the checkpoint, for messages.
        """
        self._counters.resume(counts)
        self._path = path
        self._executions_to_skip, self._logs, self._restore_metrics = None, dict(logs), restore_metrics

    def _execute(self, execute: Callable[[Any], Any], iterator: Any) -> Any:
        """Counts a `train_on_batch` of a callback outside the epoch, and not again if an earlier process has counted it."""
        position = data_position_of(self._model)
        if not position.is_of_callback(iterator):
            return execute(iterator)
        if self.is_repeating:
            with self._counters.uncounted():
                return execute(iterator)
        before = self._counters.read()
        logs = execute(iterator)
        now = self._counters.read()
        for each in (self._counters, position):
            each.leave_out(now.batch - before.batch, now.samples - before.samples)
        return logs

    def _skip(self, iterator: Any) -> dict[str, Any] | None:
        """Returns the logs of a skipped execution; None for one that trains."""
        counts = self._counters.unfinished
        if counts is None or (is_of_train_on_batch(iterator) and not self._counters.in_custom_loop):
            return None
        if self._executions_to_skip is None:
            begin = self._begin_in_custom_loop if self._counters.in_custom_loop else self._begin
            skipped = begin(counts, iterator)
            self._executions_to_skip = bounded(skipped, f"skips {skipped} batches", self._path)
        is_skipped = next(self._executions_to_skip, None) is not None
        self._counters.skip_batch(is_skipped)
        return self._logs if is_skipped else None

    def _begin_in_custom_loop(self, counts: Counts, iterator: Any) -> int:
        """Returns how many executions to skip. The loop reads the data itself; `train_on_batch` resets metrics at each batch."""
        self._logs = metric_results(self._model) | self._logs
        return max(counts.batches_in_epoch - self.begins_at, 0)

    def _begin(self, counts: Counts, iterator: Any) -> int:
        """Restores the metrics, and returns how many executions to skip."""
        done = counts.batches_in_epoch
        self._hooks.build(iterator)
        self._restore_metrics()
        with self._model.distribute_strategy.scope():
            restored = metric_results(self._model)
        if restored.keys() == self._logs.keys():
            self._logs = restored
        per_execution, planned = self._model.steps_per_execution, self.batches_per_epoch
        if planned is None:
            return done // per_execution
        left = 0 if data_position_of(self._model).ends_epoch else max(planned - done, 0)  # the number of batches may have changed
        return -(-planned // per_execution) - -(-left // per_execution)


def resumed_epoch_of(model: keras.Model) -> ResumedEpoch:
    """Returns the resumed epoch of a model, the same object each time."""
    return attached(model, ResumedEpoch) or attach(model, ResumedEpoch(model))
