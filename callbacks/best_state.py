"""Which state is the best so far, by the metric and the direction that `keras.callbacks.ModelCheckpoint` is told."""

import warnings

import keras

from callbacks.errors import InputError
from callbacks.logged_metrics import scalar


class BestState(keras.callbacks.ModelCheckpoint):
    """The part of `ModelCheckpoint` that compares metrics; what saves in Keras's way is replaced by a subclass."""

    best: float | None  # of the monitored metric

    def _is_best(self, metrics):
        """Whether the monitored metric is better than ever before; if so, it is the one to beat from now on."""
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
        """Checks that the monitored metric is known to be better when it is lower, or higher.

        Raises:
            InputError: if it is not.
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
