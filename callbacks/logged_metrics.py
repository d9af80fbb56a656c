"""What a training has logged so far, for the names of checkpoints and for whoever compares metrics.

Logs hold whatever metrics and callbacks put there: numbers of Python, numpy and TensorFlow, vectors, strings, None, dicts.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from callbacks.errors import InputError
from callbacks.metric_results import metric_results
from callbacks.template import FIELDS, Template

_TRUSTED = ("keras", __name__.partition(".")[0])  # packages whose callbacks log no metrics, but for the learning rate


def scalar(value: Any) -> float | None:
    """Returns a logged value as a number; None if it is a vector, a string or anything else that is not one number."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        return float(array) if array.ndim == 0 else None
    except Exception:  # an object of somebody's own class
        return None


class LoggedMetrics:
    """The newest value of each logged metric of a training.

    Args:
        template: the names of the checkpoints.
        validates: whether `fit` has validation data; None if nobody knows.
        callbacks: all callbacks of the training.
        logs: the last logs before this training, which resumes.
        earlier: the newest value of each metric then.
        monitor: the metric that `keep_best` compares; None without that rule.

    Attributes:
        last: the last logs that Keras reported. Callbacks may still add to them.
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
        """Takes the logs of an epoch, which stay the newest of what no batch logs."""
        self._of_epoch = self.last = logs

    def newest(self) -> dict[str, Any]:
        """Returns the newest value of each metric."""
        return {**self._of_epoch, **self.last}

    def check_before_first_batch(self, model: keras.Model) -> None:
        """Checks the names as far as they can be before training: a callback or a train step of one's own may log anything.

        Args:
            model: the model, whose metrics are made.

        Raises:
            InputError: if a name or `keep_best` needs a metric that will never come.
        """
        has_own_step = type(model).train_step is not keras.Model.train_step
        if self._validates is not None and not has_own_step and all(map(_is_trusted, self._callbacks)):
            check_metrics(self._template, model, self._validates)
            valid = _results(model, self._validates)
            if self._monitor is not None and self._monitor not in valid:
                raise InputError(
                    f"keep_best compares {self._monitor!r}, which is no metric of this run. Give a monitor of: "
                    f"{', '.join(sorted(valid))}."
                )

    def check_after_epoch(self) -> None:
        """Checks that each metric in the names has come, or is one that the next validation brings.

        Warns where that of `keep_best` has not.

        Raises:
            InputError: if one has not.
        """
        newest = self.newest()
        never = self._never_come(self._template.missing(newest))
        if self._monitor is not None and self._never_come({self._monitor} - newest.keys()):
            warnings.warn(
                f"keep_best compares {self._monitor!r}, which is in no logs at the end of the epoch. It keeps and deletes nothing. "
                f"The logs have: {', '.join(map(str, newest))}.",
                stacklevel=3,
            )
            self._monitor = None
        if never:
            raise InputError(
                f"{{{never[0]}}} in {self._template.text!r} is in no logs at the end of the epoch. "
                "Have a callback add it to the logs in on_epoch_end, or use one of: "
                + " ".join(f"{{{name}}}" for name in sorted(map(str, self.newest())))
            )

    def _never_come(self, missing: Iterable[str]) -> list[str]:
        validated = self._validates is False or any(str(name).startswith("val_") for name in self._of_epoch)
        return [name for name in missing if validated or not name.startswith("val_")]


def check_metrics(template: Template, model: keras.Model, validates: bool | None) -> None:
    """Checks that the model's own metrics are all that the names need.

    Args:
        template: the names.
        model: the model in training, whose metrics are made.
        validates: whether `fit` has validation data; None if nobody knows.

    Raises:
        InputError: if a name needs another metric.
    """
    valid = _results(model, validates)
    for name in template.missing(valid):
        why = " (fit has no validation_data)" if name.startswith("val_") and validates is False else ""
        raise InputError(
            f"{{{name}}} in {template.text!r} is neither a counter nor a metric of this run{why}. Use one of: "
            + " ".join(f"{{{each}}}" for each in (*FIELDS, *sorted(valid)))
        )


def _results(model: keras.Model, validates: bool | None) -> dict[str, Any]:
    results = metric_results(model)
    of_validation = {f"val_{name}": value for name, value in results.items()} if validates is not False else {}
    return {**results, "learning_rate": 0.0, **of_validation}


def _is_trusted(callback: keras.callbacks.Callback) -> bool:
    own = type(callback).__module__.partition(".")[0]
    return own in _TRUSTED and not isinstance(callback, keras.callbacks.LambdaCallback)
