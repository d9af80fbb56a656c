"""Collects the logged metrics of a training, for the names of checkpoints and for comparisons.

Logs contain what metrics and callbacks put there: numbers of Python, numpy and TensorFlow, vectors, strings, None, dicts.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from callbacks.counting.metric_results import metric_results
from callbacks.disk.template import FIELDS, Template
from callbacks.errors import InputError

_TRUSTED = ("keras", __name__.partition(".")[0])  # packages whose callbacks log nothing but the learning rate
_LOG_RATE = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


def scalar(value: Any) -> float | None:
    """Returns a logged value as a number; None if it is not a single number."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        return float(array) if array.ndim == 0 else None
    except Exception:  # an object of a user's class
        return None


class LoggedMetrics:
    """The newest value of each logged metric of a training.

    Args:
        template: the names of the checkpoints.
        validates: whether `fit` has validation data; None if unknown.
        callbacks: all callbacks of the training.
        logs: the last logs before the resume.
        earlier: the newest value of each metric before the resume.
        monitor: the metric that `keep_best` compares; None without that rule.

    Attributes:
        last: the last logs that Keras reported. Callbacks may still add metrics.
    """

    def __init__(
        self,
        template: Template,
        validates: bool | None,
        callbacks: Iterable[keras.callbacks.Callback],
        logs: Mapping[str, Any],
        earlier: Mapping[str, Any],
        monitor: str | None = None,
    ):
        self._monitor = monitor
        self._template, self._validates, self._callbacks = template, validates, callbacks
        self._of_epoch, self.last = earlier, logs

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """Keeps the logs of an epoch, for the metrics that batches do not log."""
        self._of_epoch = self.last = logs

    def newest(self) -> dict[str, Any]:
        """Returns the newest value of each metric."""
        return {**self._of_epoch, **self.last}

    def check_before_first_batch(self, model: keras.Model) -> None:
        """Checks the names before training, unless a user's callback or train step may log further metrics.

        Args:
            model: the model, whose metrics are built.

        Raises:
            InputError: if a name or `keep_best` needs a metric that this run never logs.
        """
        has_own_step = type(model).train_step is not keras.Model.train_step
        if self._validates is not None and not has_own_step and all(map(_is_trusted, self._callbacks)):
            check_metrics(self._template, model, self._validates, self._callbacks)
            valid = _valid(model, self._validates, self._callbacks)
            if self._monitor is not None and self._monitor not in valid:
                raise InputError(
                    f"keep_best compares {self._monitor!r}, which is not a metric of this run. Set monitor to one of: "
                    f"{', '.join(sorted(valid))}."
                )

    def check_after_epoch(self) -> None:
        """Checks that each metric in the names was logged, or may be logged by the next validation.

        Warns if the metric of `keep_best` was not logged.

        Raises:
            InputError: if a metric in the names was not logged.
        """
        newest = self.newest()
        never = self._never_logged(self._template.missing(newest))
        if self._monitor is not None and self._never_logged({self._monitor} - newest.keys()):
            warnings.warn(
                f"keep_best compares {self._monitor!r}, which was not logged by the end of the epoch, so it keeps and deletes "
                f"nothing. Logged: {', '.join(map(str, newest))}.",
                stacklevel=3,
            )
            self._monitor = None
        if never:
            raise InputError(
                f"{{{never[0]}}} in {self._template.text!r} was not logged by the end of the epoch. "
                "Let a callback add it to the logs in on_epoch_end, or use one of: "
                + " ".join(f"{{{name}}}" for name in sorted(map(str, self.newest())))
            )

    def _never_logged(self, missing: Iterable[str]) -> list[str]:
        validated = self._validates is False or any(str(name).startswith("val_") for name in self._of_epoch)
        return [name for name in missing if validated or not name.startswith("val_")]


def check_metrics(
    template: Template, model: keras.Model, validates: bool, callbacks: Iterable[keras.callbacks.Callback] = ()
) -> None:
    """Checks that the names need only metrics that Keras logs.

    Args:
        template: the names.
        model: the model in training, whose metrics are built.
        validates: whether `fit` has validation data.
        callbacks: callbacks of Keras, of which some log the learning rate.

    Raises:
        InputError: if a name needs another metric.
    """
    valid = _valid(model, validates, callbacks)
    for name in template.missing(valid):
        why = " (fit has no validation_data)" if name.startswith("val_") and not validates else ""
        raise InputError(
            f"{{{name}}} in {template.text!r} is neither a counter nor a metric of this run{why}. Use one of: "
            + " ".join(f"{{{each}}}" for each in (*FIELDS, *sorted(valid)))
        )


def _valid(model: keras.Model, validates: bool, callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, Any]:
    results = metric_results(model)
    of_validation = {f"val_{name}": value for name, value in results.items()} if validates else {}
    of_callbacks = {"learning_rate": 0.0} if any(isinstance(each, _LOG_RATE) for each in callbacks) else {}
    return {**results, **of_callbacks, **of_validation}


def _is_trusted(callback: keras.callbacks.Callback) -> bool:
    own = type(callback).__module__.partition(".")[0]
    return own in _TRUSTED and not isinstance(callback, keras.callbacks.LambdaCallback)
