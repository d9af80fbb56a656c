"""Collects what the user's layers, train steps and callbacks write with `tf.summary` during training."""

import contextlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from callbacks.attached import attach, attached
from callbacks.event_files import EventFile, read_events
from callbacks.fit_hooks import fit_hooks_of

# The default writer of each thread. After a failed `fit` it stays here until the next `enter`: if it were freed earlier, TensorFlow
# would restore the writer before it in the middle of another `fit`.
_default = threading.local()


class UserSummaries:
    """The default writer of `tf.summary` for one model. `user_summaries_of(model)` makes it.

    A compiled train step keeps the writer, the step and the condition that it was traced with. So they belong to the model, the
    step and the condition are variables, and the events stay in a temporary file until `take` reads them.
    """

    def __init__(self, model: keras.Model):
        self._directory = tempfile.mkdtemp(prefix="summaries-")
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._writer = tf.summary.create_file_writer(self._directory)
        with tf.device("/cpu:0"):
            self._step = tf.Variable(0, trainable=False, dtype="int64", name="step_of_summaries")
            self._records = tf.Variable(False, trainable=False, name="records_summaries")
        self._is_recording = self._may_have_events = False
        self._entered: contextlib.ExitStack | None = None
        self._position = 0  # bytes of the file that `take` has read
        fit_hooks_of(model).trace_again()

    def enter(self) -> None:
        """Becomes the default writer of this thread. Repeated calls do nothing."""
        if self._entered is None:
            if (earlier := getattr(_default, "summaries", None)) is not None:
                earlier.leave()
            _default.summaries = self
            self._entered = contextlib.ExitStack()
            self._entered.enter_context(self._writer.as_default(self._step))
            self._entered.enter_context(tf.summary.record_if(self._records.read_value))

    def leave(self) -> None:
        """Restores the earlier default writer."""
        self.record(None)
        if self._entered is not None:
            self._entered.close()
            self._entered = _default.summaries = None

    def record(self, step: int | None) -> None:
        """Sets the step of the summaries from now on.

        Args:
            step: the global batch; None to write no summaries.
        """
        if step is not None:
            self._step.assign(step)
            self._may_have_events = True
        if self._is_recording != (step is not None):
            self._is_recording = step is not None
            self._records.assign(self._is_recording)

    def take(self) -> list[tf.compat.v1.Event]:
        """Returns the events since the last call, scalars as plain numbers."""
        if not self._may_have_events:
            return []
        self._may_have_events = self._is_recording
        self._writer.flush()
        path = next(Path(self._directory).iterdir(), None)
        if path is None:
            return []
        with open(path, "rb") as file:
            file.seek(self._position)
            events = [event for event in read_events(file) if event.HasField("summary")]
            self._position = file.tell()
        for value in (value for event in events for value in event.summary.value):
            if value.metadata.plugin_data.plugin_name == "scalars" and value.HasField("tensor"):
                value.simple_value = float(tf.make_ndarray(value.tensor))
        return events


class SummaryRelay:
    """Copies the user's summaries to the event files of a run. It does nothing before `enter` and after `leave`.

    Args:
        file: returns the event file of a name, `batches` or `validation`.
    """

    def __init__(self, file: Callable[[str], EventFile]):
        self._file = file
        self._summaries: UserSummaries | None = None
        self._step: int | None = None

    def enter(self, model: keras.Model, step: int) -> None:
        """Begins to collect summaries.

        Args:
            model: the model.
            step: the batch counter.
        """
        self._summaries = user_summaries_of(model)
        self._summaries.enter()
        self.record(step)

    def record(self, step: int | None) -> None:
        """Sets the step of training; None if no point is due."""
        self._step = step
        self.record_in_validation(step)

    def record_in_validation(self, step: int | None) -> None:
        """Sets the step until `end_validation`."""
        if self._summaries:
            self._summaries.record(step)

    def end_validation(self) -> None:
        """Copies the summaries of a validation, and returns to the step of training."""
        self.pass_on("validation")
        self.record_in_validation(self._step)

    def pass_on(self, name: str = "batches") -> None:
        """Copies the summaries written until now."""
        events = self._summaries.take() if self._summaries else []
        if events:
            self._file(name).add(events)

    def leave(self) -> None:
        """Copies the summaries written until now, and ends the collection."""
        self.pass_on()
        if self._summaries:
            self._summaries.leave()
            self._summaries = None


def user_summaries_of(model: keras.Model) -> UserSummaries:
    """Returns the summaries of a model, the same object each time."""
    return attached(model, UserSummaries) or attach(model, UserSummaries(model))
