"""Finds the best state so far by a monitored metric, as `keras.callbacks.ModelCheckpoint` does."""

import warnings

import keras

from callbacks.counting.logged_metrics import scalar
from callbacks.errors import InputError


class BestState(keras.callbacks.ModelCheckpoint):
    """Compares metrics as `ModelCheckpoint` does. A subclass replaces the part that saves."""

    best: float | None  # the best value of the monitored metric

    def _is_best(self, metrics):
        """Returns whether the monitored metric is better than before, and keeps it as the best one if so."""
        value = metrics.get(self.monitor)
        if value is None:
            warnings.warn(f"Can save best model only with {self.monitor} available.", stacklevel=5)
            return True
        received, value = value, scalar(value)
        if value is None:
            warnings.warn(
                f"Can save best model only when `monitor` is a scalar value. Received: {received}. "
                "Falling back to `save_best_only=False`.",
                stacklevel=5,
            )
            return True
        if self.monitor_op is None:
            self._set_monitor_op()
        if self.best is not None and not self.monitor_op(value, self.best):
            return False
        self.best = value
        return True

    def _check_direction(self):
        """Checks that Keras knows whether a lower or a higher value of the monitored metric is better.

        Raises:
            InputError: if it does not.
        """
        try:
            self._lower_is_better()
        except ValueError:
            raise InputError(
                f"monitor={self.monitor!r} has no known direction. Give mode='min' if a lower value is better, or mode='max'."
            ) from None

    def _lower_is_better(self):
        if self.monitor_op is None:
            self._set_monitor_op()
        return bool(self.monitor_op(0.0, 1.0))
