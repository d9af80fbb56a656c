"""`GlobalStepTensorBoard`: the curves of a run over the global batch, continued by each restart."""

import importlib.util
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence

import keras

from callbacks.copyable import Copyable
from callbacks.counting.counters import Counters, counters_of
from callbacks.counting.save_costs import SaveCosts, save_costs_of
from callbacks.counts import Counts, next_multiple
from callbacks.curves.batch_curves import BatchCurves
from callbacks.curves.batch_profiler import BatchProfiler
from callbacks.curves.run_events import RunEvents
from callbacks.curves.step_statistics import StepStatistics
from callbacks.curves.tags import learning_rates
from callbacks.curves.user_summaries import SummaryRelay
from callbacks.disk.folders import local_folder
from callbacks.errors import InputError
from callbacks.model.fit_hooks import running_fit
from callbacks.model.hook_attributes import set_by_model, set_by_train_begin
from callbacks.ranks import ranks

_LARGEST_DATA_SAMPLE = 10  # batches


class GlobalStepTensorBoard(Copyable, keras.callbacks.TensorBoard):
    """Writes curves for TensorBoard over the global batch, so that a restarted run continues its curves.

    ```python
    model.fit(data, validation_data=validation, epochs=20, callbacks=[
        GlobalStepTensorBoard("run/tensorboard"),
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, resume=True),
    ])
    ```

    It replaces `keras.callbacks.TensorBoard`. Attach it on every rank; only the chief writes. TensorBoard shows three runs:
    `train` and `validation` with a point for each epoch (`epoch_loss`, ...), and `batches` with a point every `update_freq`
    batches (`batch_loss`, ..., and the curves of `tags.DESCRIPTIONS`). The step of a point is the batch counter. On restart,
    TensorBoard discards events after the resumed checkpoint (`SessionLog.START`); events up to a checkpoint are written before
    that checkpoint. Summaries that your layers, train steps and callbacks write with `tf.summary` and without a step go to the
    same points of `batches`; those of a validation go to `validation`.

    Args:
        log_dir: TensorBoard's directory of this run, on a local or mounted file system. No other run writes there.
        histogram_freq, write_graph, write_images, embeddings_freq, embeddings_metadata: as in Keras.
        write_steps_per_second: also writes `batch_steps_per_second`.
        update_freq: the number of global batches between points; `"batch"` for every batch, `"epoch"` for the ends of epochs
            only. Under `steps_per_execution`, at the first boundary at or after each multiple.
        profile_batch: a global batch, or the first and last of several, to profile. After a restart in between, the rest.
        profile_ranks: the ranks to profile.
        peak_tflops: the peak of one device, for model FLOPs utilization; None looks it up (`callbacks.curves.device_usage`).
        hparams: the run's hyperparameters: name -> number, text or bool. A resume replaces them; TensorBoard needs a restart then.

    Raises:
        InputError: if `log_dir` is a URL; or when training begins, if nothing can be written there or a rank to profile is missing.
        EventWriteError: during training, if nothing can be written there any more. If `log_dir` was deleted, moved or
            unmounted, training continues without curves and a warning says so.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: int | str = 50,
        profile_batch: int | tuple[int, int] = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: Mapping[str, str] | str | None = None,
        *,
        profile_ranks: Sequence[int] = (0,),
        peak_tflops: float | None = None,
        hparams: Mapping[str, float | str | bool] | None = None,
    ):
        if update_freq not in ("batch", "epoch") and not (isinstance(update_freq, int) and update_freq > 0):
            raise InputError(f"update_freq must be 'batch', 'epoch' or a positive number of batches. Received: {update_freq!r}")
        super().__init__(
            local_folder(log_dir),
            histogram_freq,
            write_graph,
            write_images,
            write_steps_per_second,
            update_freq,
            profile_batch,
            embeddings_freq,
            embeddings_metadata,
        )
        if peak_tflops is not None and not peak_tflops > 0:
            raise InputError(f"peak_tflops must be a number above 0, or None. Received: {peak_tflops!r}")
        self.hparams, self._peak_tflops = dict(hparams or {}), peak_tflops
        self._profile_ranks, self._time = tuple(profile_ranks), time.time
        self._settings = frozenset(vars(self)) - {"_model", "_writers", "_summary_module"}
        self._forget_run()

    def _forget_run(self):
        """Resets the attributes of a run, which are not copied with the callback."""
        self._model: keras.Model | None = None
        self._writers: dict = {}
        self._summary_module = None
        self._statistics = StepStatistics()
        self._events = RunEvents(self.log_dir, self._time)
        self._relay = SummaryRelay(lambda name: self._events.file(name))
        self._validates = self._has_begun = self._trains = self._begins_epoch = False
        self._next_point = math.inf

    _counters: Counters = set_by_model()
    _costs: SaveCosts = set_by_model()
    _profiler: BatchProfiler = set_by_train_begin()
    _curves: BatchCurves = set_by_train_begin()

    def get_state(self) -> dict[str, float]:
        """Returns the callback state: the seconds of training on the batches that the model has."""
        return {"kept_seconds": self._statistics.kept_seconds}

    def set_state(self, state: dict[str, float]) -> None:
        """Restores the callback state. Raises KeyError, TypeError or ValueError if it is not one from `get_state`."""
        self._statistics.kept_seconds = float(state["kept_seconds"])

    def set_model(self, model):
        if model is not self._model:
            self._events = RunEvents(self.log_dir, self._time)
        self._model = model
        self._counters, self._costs = counters_of(model), save_costs_of(model)

    def on_train_begin(self, logs=None):
        self._profiler = BatchProfiler(self._start_batch, self._stop_batch, self._profile_ranks)
        fit = running_fit(self)
        self._counters.begin_training(in_fit=not fit.is_custom_loop)
        self._validates = fit.validates is not False
        self._curves = BatchCurves(self.model, self._statistics, self._costs, self._data_sample, self._peak_tflops)
        self._statistics.forget_batch()
        self._enter_summaries()
        self._has_begun, self._trains = False, True

    def on_epoch_begin(self, epoch, logs=None):
        self._counters.begin_epoch(epoch)
        counts = self._counters.read()
        self._curves.begin_epoch(counts)
        self._begins_epoch = True
        if not self._has_begun:  # all callbacks have restored their state by now
            self._has_begun = True
            self._begin(counts)
            self._relay.record(self._counters.batch_bound)

    def on_train_batch_begin(self, batch, logs=None):
        self._relay.pass_on()  # summaries of callbacks that come after this one
        left = ((self.params or {}).get("steps") or math.inf) - batch  # batches of the epoch
        ends_at = self._counters.batch_bound + max(min(self.model.steps_per_execution, left), 1)
        self._relay.record(ends_at if batch >= self._counters.batches_done and ends_at >= self._next_point else None)
        self._profiler.begin_batch(self._counters)
        self._statistics.begin_batch(self._counters.batch_bound, self._begins_epoch, self._costs.is_writing)
        self._begins_epoch = False

    def on_train_batch_end(self, batch, logs=None):
        self._counters.end_batch(self)
        self.before_save(logs or {})

    def on_test_begin(self, logs=None):
        self._statistics.begin_validation()
        if not self._trains:
            self._enter_summaries()
        self._relay.pass_on()

    def on_test_batch_begin(self, batch, logs=None):
        self._global_test_batch += 1
        if self.update_freq != "epoch":
            is_due = self._global_test_batch % self.update_freq == 0
            self._relay.record_in_validation(self._counters.read().batch if is_due else None)

    def on_test_end(self, logs=None):
        self._statistics.end_validation()
        self._relay.end_validation()
        if not self._trains:
            self._relay.leave()
        if not self._trains and ranks().is_chief:
            self._events.write_evaluation(self._counters.read().batch, logs or {})

    def on_epoch_end(self, epoch, logs=None):
        counts = self._counters.read()
        self._relay.pass_on()
        if self.update_freq == "epoch":
            self._write_point(counts, {})
        if ranks().is_chief:
            self._write_epoch(counts.batch, epoch, logs or {})

    def on_train_end(self, logs=None):
        self._trains = False
        self._relay.leave()
        if self._profiler.is_running:
            self._write_profile()

    @property
    def _data_sample(self):
        """The wait for data is measured for one batch in this number: often enough for five batches in each point."""
        return _LARGEST_DATA_SAMPLE if self.update_freq == "epoch" else min(max(self.update_freq // 5, 1), _LARGEST_DATA_SAMPLE)

    def _begin(self, counts: Counts) -> None:
        """Opens the files, discards what earlier attempts wrote after these counts, and starts the first window."""
        if ranks().is_chief:
            if not self._events.is_open:
                self._open()
            self._events.begin(counts)
        self._start_window(counts)

    def _open(self):
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        if not has_tensorboard:
            warnings.warn(
                "TensorBoard is not installed. The curves are written; to see them: pip install tensorboard", stacklevel=2
            )
            self.histogram_freq = self.embeddings_freq = 0  # Keras needs TensorBoard for these
        is_first_attempt = self._events.open(self._validates)
        if is_first_attempt and self.write_graph:
            self._write_with_keras(self._write_keras_model_summary)
        if self.embeddings_freq:
            self._log_write_dir = self.log_dir
            self._configure_embeddings()
        if has_tensorboard:
            self._events.write_hparams(self.hparams)

    def _start_window(self, counts):
        self._next_point = math.inf if self.update_freq == "epoch" else next_multiple(counts.batch, self.update_freq)
        self._statistics.begin_window(counts, self._costs)

    def before_save(self, logs: Mapping[str, float]) -> None:
        """Notes the end of the batch, so that curves and state of a save include it. A second call for the batch does nothing."""
        self._curves.loss.end_batch(self._counters.batch_bound, logs.get("loss"))
        if not self._statistics.end_batch(self._counters.batch_bound, ranks().gradients_ready_at):
            return
        if self._counters.reached(self._next_point):
            self._relay.pass_on()
            self._write_point(self._counters.read(), logs)
        if self._profiler.has_ended(self._counters):
            self._write_profile()

    def _write_point(self, counts, logs):
        of_ranks = self._curves.compare_ranks()
        if ranks().is_chief:
            numbers = self._events.numbers({**logs, **learning_rates(self.model)}) if logs else {}
            values = {f"batch_{name}": value for name, value in numbers.items()}
            values |= self._curves.values(counts, bool(logs)) | of_ranks
            values |= self._events.run_values(self._statistics.kept_seconds)
            if not self.write_steps_per_second:
                del values["batch_steps_per_second"]
            self._events.write_point(counts.batch, values)
        self._start_window(counts)

    def _write_epoch(self, batch, epoch, logs):
        self._events.write_epoch(batch, {**logs, **learning_rates(self.model)})
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write_with_keras(self._log_weights, batch)
        if self.embeddings_freq and epoch % self.embeddings_freq == 0 and not self._events.file("train").is_lost:
            self._log_embeddings(batch)

    def _enter_summaries(self):
        self._global_test_batch = 0
        if ranks().is_chief and self.update_freq != "epoch":
            self._relay.enter(self.model, self._counters.read().batch)

    def _write_with_keras(self, write, *arguments):
        """Lets the base class write to another directory, and adopts its events: TensorBoard reads one file per directory."""
        with tempfile.TemporaryDirectory() as self._train_dir, self.summary.record_if(True):
            write(*arguments)
            self._train_writer.close()
            self._writers.clear()
            self._events.file("train").adopt(self._train_dir)

    def _write_profile(self):
        """Gathers the profiles of the ranks and writes them on the chief."""
        profiles = self._profiler.take()
        if ranks().is_chief:
            self._events.write_profiles(f"batch_{self._start_batch:05d}_to_{self._stop_batch:05d}", profiles)
