"""`RunRecord`: records where the time of a run goes, for `python -m callbacks report`."""

import atexit
import os
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import keras

from callbacks import preemption, start_up
from callbacks.copyable import Copyable
from callbacks.counting.counters import Counters, counters_of
from callbacks.counting.data_arrival import DataArrival, data_arrival_of
from callbacks.counting.save_costs import SaveCosts, save_costs_of
from callbacks.disk.folders import local_folder
from callbacks.errors import InputError
from callbacks.model.attached import attach, attached
from callbacks.model.fit_hooks import fit_hooks_of, running_fit
from callbacks.model.hook_attributes import set_by_train_begin
from callbacks.ranks import ranks
from callbacks.report import record_file
from callbacks.report.time_account import TimeAccount

_DATA_SAMPLE = 10  # the wait for data is measured for one batch in ten
_failure = ""


def note_failure(why: str) -> None:
    """Notes why this process is about to end, if no Python exception ends it."""
    global _failure
    _failure = why


class _Attempt:
    """This process's part of the record: its time account and its lines.

    Args:
        path: the path of the record.
        clock: returns seconds since 1970.
    """

    def __init__(self, path: str, clock: Callable[[], float]):
        start_up.end_phase("data" if start_up.phases() else "set-up")
        self.path, self._clock = path, clock
        self.account = TimeAccount(clock, start_up.began(), start_up.phases())
        self._name = uuid.uuid4().hex[:12]
        self.has_begun = self._writes = False
        self._saved: tuple[int, str] | None = None
        self.trains = self.has_trained = False

    counters: Counters  # of the model in training, as are the costs
    costs: SaveCosts

    def begin(self) -> None:
        """Writes the first line.

        Raises:
            InputError: if the line cannot be written.
        """
        self.has_begun = True
        place = {"began": self.account.began, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            record_file.create(self.path)
            record_file.append(self.path, self._line("begin") | place, flush=True)
        except OSError as error:
            raise InputError(
                f"Cannot write the record of the run to {self.path}: {error.strerror}. Give a directory that can be written to."
            ) from None
        self._writes = True
        atexit.register(self._end)

    def tick(self) -> None:
        """Writes a line if it is time, or a checkpoint was saved."""
        if self._writes and (self.account.tick_is_due() or self.costs.newest != self._saved):
            self._append(self._line("tick"))

    def _end(self):
        self.account.charge("callbacks" if self.trains else "outside", self.costs.blocked)
        if os.path.isdir(os.path.dirname(self.path)):  # not after the user has deleted the run
            self._append(self._line("end") | {"why": self._why()}, flush=True)

    def _why(self):
        if not self.trains:
            return "finished"
        error = getattr(sys, "last_value", None)  # the error whose traceback Python has printed
        if error is not None:
            return f"{type(error).__name__}: {error}".partition("\n")[0]
        code = ranks().stop_requested()
        if _failure or not code:
            return _failure or "exited in the middle of training"
        return f"stopped {preemption.reason(code)}, {'after a' if self.costs.newest else 'before the first'} save"

    def _line(self, kind: str) -> dict[str, Any]:
        self._saved, account = self.costs.newest, self.account
        return {
            "kind": kind,
            "attempt": self._name,
            "time": self._clock(),
            "batch": self.counters.batch_bound,
            "seconds": {name: round(seconds, 4) for name, seconds in account.seconds.items()},
            **vars(account.times),
            "saved": self._saved,
        }

    def _append(self, line, **how):
        if not self._writes:
            return
        try:
            record_file.append(self.path, line, **how)
        except OSError as error:
            self._writes = False
            warnings.warn(
                f"Cannot write {self.path} any more: {error.strerror}. Training continues, but python -m callbacks report does not "
                "show the rest of this attempt.",
                stacklevel=2,
            )


_attempts: dict[str, _Attempt] = {}  # of this process: path -> attempt


class RunRecord(Copyable, keras.callbacks.Callback):
    """Records where the time of a run goes, over all its restarts. `python -m callbacks report DIRECTORY` shows it.

    ```python
    model.fit(data, epochs=20, callbacks=[
        RunRecord("run"),
        GlobalStepTensorBoard("run/tensorboard"),
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", resume=True),
    ])
    ```

    Attach it on every rank, as the first callback; only the chief writes. It appends lines of JSON to `record.jsonl`
    (`callbacks/report/record_file.py`) at each save, and often enough that a kill loses at most half a percent of the time.

    Args:
        directory: the run's directory.

    Raises:
        InputError: if the directory is a URL; or when training begins, if nothing can be written there. If that happens later, a
            warning says so.
    """

    def __init__(self, directory: str | os.PathLike):
        super().__init__()
        self._path = os.path.join(local_folder(directory), record_file.NAME)
        self._time = time.time
        self._settings = frozenset(vars(self)) - {"_model"}
        self._forget_run()

    def _forget_run(self):
        """Resets the attributes of a run, which are not copied with the callback."""
        self._model = None
        self._trains = False
        self._arrival: DataArrival | None = None
        self._batches_of_epoch = 0  # that have begun

    _attempt: _Attempt = set_by_train_begin()
    _account: TimeAccount = set_by_train_begin()
    _counters: Counters = set_by_train_begin()
    _costs: SaveCosts = set_by_train_begin()
    _bound, _is_writing = 0, False  # when the batch began

    def on_train_begin(self, logs=None):
        self._counters, self._costs = counters_of(self.model), save_costs_of(self.model)
        self._counters.begin_training(in_fit=not running_fit(self).is_custom_loop)
        _executions_of(self.model).record = self
        is_first = self._path not in _attempts
        self._attempt = _attempts[self._path] = _attempts.get(self._path) or _Attempt(self._path, self._time)
        self._account = self._attempt.account
        if not is_first:
            self._charge("outside")
        self._arrival = data_arrival_of(self.model, _DATA_SAMPLE)
        if self._arrival:
            self._arrival.acts["record"] = self._account.note_data
        self._attempt.counters, self._attempt.costs = self._counters, self._costs
        self._trains = self._attempt.trains = True

    def on_epoch_begin(self, epoch, logs=None):
        self._counters.begin_epoch(epoch)
        if not self._attempt.has_begun and ranks().is_chief:  # all callbacks have restored their state by now
            self._charge("restore")
            self._attempt.begin()
        self._charge("callbacks")
        if self._arrival:
            self._arrival.begin_epoch()
        self._batches_of_epoch = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._charge("callbacks" if self._batches_of_epoch else "epochs")
        self._batches_of_epoch += 1
        self._bound, self._is_writing = self._counters.batch_bound, self._costs.is_writing

    def begin_execution(self) -> None:
        """Starts a batch, just before Keras's train function."""
        self._charge("callbacks")
        self._account.begin_batch()

    def on_train_batch_end(self, batch, logs=None):
        self._counters.end_batch(self)
        trained = self._counters.batch_bound - self._bound
        if trained and self._attempt.has_trained:
            self._account.end_batch(trained, self._is_writing, begins_epoch=self._batches_of_epoch == 1)
        else:
            self._charge("trace" if trained else "restore")
            self._attempt.has_trained |= bool(trained)
        self._attempt.tick()

    def on_test_begin(self, logs=None):
        if self._trains:
            self._charge("validation")

    def on_test_batch_end(self, batch, logs=None):
        if self._trains:
            self._charge("validation")
            self._attempt.tick()

    def on_test_end(self, logs=None):
        if self._trains:
            self._charge("validation")

    def on_epoch_end(self, epoch, logs=None):
        self._charge("callbacks")
        self._attempt.tick()

    def on_train_end(self, logs=None):
        self._charge("callbacks")
        self._trains = self._attempt.trains = False
        _executions_of(self.model).record = None
        start_up.restart()

    def _charge(self, name):
        self._account.charge(name, self._costs.blocked)


class _Executions:
    """Notifies a record when an execution of a model begins.

    Attributes:
        record: the record of the running `fit`; None if it has none.
    """

    def __init__(self, model: keras.Model):
        self.record: RunRecord | None = None
        fit_hooks_of(model).around_execution(self._execute)

    def _execute(self, execute, iterator):
        if self.record:
            self.record.begin_execution()
        return execute(iterator)


def _executions_of(model: keras.Model) -> _Executions:
    return attached(model, _Executions) or attach(model, _Executions(model))
