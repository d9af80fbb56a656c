"""`GlobalStepTensorBoard`: one set of curves for a run, over the batches trained on since training began."""

import importlib.util
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from callbacks import event_files
from callbacks.batch_curves import BatchCurves
from callbacks.batch_profiler import BatchProfiler
from callbacks.copyable import Copyable
from callbacks.counters import counters_of
from callbacks.counts import Counts
from callbacks.errors import InputError
from callbacks.event_files import EventFile
from callbacks.fit_hooks import running_fit
from callbacks.folders import local_folder
from callbacks.logged_metrics import scalar
from callbacks.ranks import ranks
from callbacks.save_costs import save_costs_of
from callbacks.save_policy import next_multiple
from callbacks.step_statistics import StepStatistics, ratio
from callbacks.tags import describe, hparams_summary, learning_rates
from callbacks.user_summaries import SummaryRelay

_LONGEST_SAMPLE = 10


class GlobalStepTensorBoard(Copyable, keras.callbacks.TensorBoard):
    """Writes curves for TensorBoard, all of them over the global batch, which no restart doubles back.

    ```python
    model.fit(data, validation_data=validation, epochs=20, callbacks=[
        GlobalStepTensorBoard("run/tensorboard"),
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, resume=True),
    ])
    ```

    It takes the place of `keras.callbacks.TensorBoard`, on every rank; only the chief writes. Runs in TensorBoard: `train` and
    `validation` with a point for each epoch (`epoch_loss`, ...), and `batches` with a point every `update_freq` batches
    (`batch_loss`, ..., and what `tags.DESCRIPTIONS` lists). Every point stands at the number of batches trained on since training
    began, over all restarts. What a life wrote past the checkpoint that the next one goes on from is dropped, as TensorBoard
    provides for it (`SessionLog.START`); what belongs to a checkpoint has reached the system before that is taken. Summaries that
    your own layers, train steps and callbacks write with `tf.summary` and without a step come to the same points of `batches`;
    those of a validation to `validation`.

    Args:
        log_dir: TensorBoard's directory of this run, on a local or mounted file system, which no other run writes to.
        histogram_freq, write_graph, write_images, embeddings_freq, embeddings_metadata: as in Keras.
        write_steps_per_second: also `batch_steps_per_second`.
        update_freq: after how many global batches; `"batch"` for each, `"epoch"` for points at the ends of epochs only.
            Under `steps_per_execution` at the first boundary at or after each multiple.
        profile_batch: a global batch, or the first and the last of several, to profile. After a restart among them, the rest.
        profile_ranks: the ranks to profile.
        peak_tflops: of one device, for the share of its arithmetic that the model uses; None for that of a table
            (`callbacks.device_usage`).
        hparams: what TensorBoard shows as the run's hyperparameters: name -> number, text or bool. A resume replaces those of
            earlier processes. TensorBoard has to be started again to show them.

    Raises:
        InputError: if `log_dir` is a URL; when training begins, if nothing can be written to `log_dir`, or the run has no such rank
            to profile.
        EventWriteError: during training, if nothing can be written there any more. Where `log_dir` was deleted, moved or
            unmounted, a warning says so, and training continues without curves.
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
            raise InputError(f"update_freq is 'batch', 'epoch' or a number of batches, 1 or more. Received: {update_freq!r}")
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
            raise InputError(f"peak_tflops is a number above 0, or None. Received: {peak_tflops!r}")
        self.hparams = dict(hparams or {})
        self._peak_tflops = peak_tflops
        self._profile_ranks = tuple(profile_ranks)
        self._time = time.time
        self._settings = frozenset(vars(self)) - {"_model", "_writers", "_summary_module"}
        self._forget_run()

    def _forget_run(self):
        """Sets what belongs to a run, and is not copied with the callback."""
        self._model: keras.Model | None = None
        self._writers: dict = {}
        self._summary_module = None
        self._statistics = StepStatistics()
        self._files: dict[str, EventFile] = {}
        self._relay = SummaryRelay(self._file)
        self._evaluation: EventFile | None = None  # where no `fit` has opened one
        self._profiler = BatchProfiler(self._start_batch, self._stop_batch, self._profile_ranks)
        self._validates = self._has_begun = self._trains = False
        self._next_point = math.inf
        self._left_out: set[str] = set()  # logs that no curve can show
        self._restarts, self._run_began = 0, 0.0

    _curves: BatchCurves  # from `on_train_begin` on

    def get_state(self) -> dict[str, float]:
        """Returns what a checkpoint keeps: the seconds spent on the batches that it holds."""
        return {"kept_seconds": self._statistics.kept_seconds}

    def set_state(self, state: dict[str, float]) -> None:
        """Takes over what `get_state` returned."""
        self._statistics.kept_seconds = state["kept_seconds"]

    def set_model(self, model):
        if model is not self._model:
            self._files, self._evaluation = {}, None
        self._model = model
        self._counters, self._costs = counters_of(model), save_costs_of(model)

    def on_train_begin(self, logs=None):
        if not set(self._profile_ranks) <= set(range(ranks().size)):
            raise InputError(
                f"profile_ranks are of this run, which has ranks 0 to {ranks().size - 1}. Received: {list(self._profile_ranks)}"
            )
        fit = running_fit(self)
        self._counters.begin_training(in_fit=not fit.is_own_loop)
        self._validates = fit.validates is not False
        self._curves = BatchCurves(self.model, self._statistics, self._costs, self._data_sample, self._peak_tflops)
        self._statistics.forget_batch()
        self._enter_summaries()
        self._profiler = BatchProfiler(self._start_batch, self._stop_batch, self._profile_ranks)
        self._has_begun, self._trains = False, True

    def on_epoch_begin(self, epoch, logs=None):
        self._counters.begin_epoch(epoch)
        counts = self._counters.read()
        self._curves.loss.begin_epoch(counts.batch - counts.batches_in_epoch)
        if not self._has_begun:  # only now has every callback restored what it restores
            self._has_begun = True
            self._begin(counts)
            self._relay.record(self._counters.batch_bound)

    def on_train_batch_begin(self, batch, logs=None):
        self._relay.pass_on()  # of callbacks that come after this one
        left = ((self.params or {}).get("steps") or math.inf) - batch  # of the epoch
        ends_at = self._counters.batch_bound + max(min(self.model.steps_per_execution, left), 1)
        self._relay.record(ends_at if batch >= self._counters.batches_done and ends_at >= self._next_point else None)
        self._profiler.begin_batch(self._counters)
        self._statistics.begin_batch(self._counters.batch_bound)

    def on_train_batch_end(self, batch, logs=None):
        self._counters.end_batch(self)
        self.end_batch(logs or {})

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
            self._write_evaluation(logs or {})

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
        """One batch in how many tells how long it waited for data: five for each point, if there are as many."""
        return _LONGEST_SAMPLE if self.update_freq == "epoch" else min(max(self.update_freq // 5, 1), _LONGEST_SAMPLE)

    def _begin(self, counts: Counts) -> None:
        """Opens the files, drops what lies past here in them, and starts the first window."""
        if ranks().is_chief:
            if not self._files:
                self._open()
            now = self._time()
            within_epoch = counts.batches_in_epoch > 0
            for name, file in self._files.items():
                # A life may have ended its epoch after the checkpoint: then this one does it again.
                file.begin(counts.batch if within_epoch and name != "batches" else counts.batch + 1, now)
            self._look_back(now)
        self._start_window(counts)

    def _open(self):
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        if not has_tensorboard:
            warnings.warn(
                "TensorBoard is not installed. The curves are written; to see them: pip install tensorboard", stacklevel=2
            )
            self.histogram_freq = self.embeddings_freq = 0  # these it takes part in
        is_first_life = event_files.is_empty(os.path.join(self.log_dir, "batches"))
        names = ["batches", "train"]
        if self._validates or not event_files.is_empty(os.path.join(self.log_dir, "validation")):
            names.append("validation")
        self._files = {name: EventFile(os.path.join(self.log_dir, name), describe) for name in names}
        if is_first_life and self.write_graph:
            self._write_with_keras(self._write_keras_model_summary)
        if self.embeddings_freq:
            self._log_write_dir = self.log_dir
            self._configure_embeddings()
        if self.hparams and has_tensorboard:
            now = self._time()
            event_files.replace_summary(self.log_dir, describe, hparams_summary(self.hparams, now), now)

    def _look_back(self, now):
        lives = event_files.lives(os.path.join(self.log_dir, "batches"))
        self._restarts = max(len(lives) - 1, 0)
        self._run_began = min(lives.values(), default=now)

    def _start_window(self, counts):
        self._next_point = math.inf if self.update_freq == "epoch" else next_multiple(counts.batch, self.update_freq)
        self._statistics.begin_window(counts, self._costs)

    def end_batch(self, logs: Mapping[str, float]) -> None:
        """Notes the end of a batch, once; a checkpoint that is taken before this callback's turn calls it first.

        Args:
            logs: those of the batch.
        """
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
            numbers = self._numbers({**logs, **learning_rates(self.model)}) if logs else {}
            values = {f"batch_{name}": value for name, value in numbers.items()}
            now = self._time()
            goodput = ratio(self._statistics.kept_seconds, now - self._run_began)
            values |= self._curves.values(counts, bool(logs)) | of_ranks
            values |= {"run/restarts": self._restarts, "run/goodput": goodput}
            if not self.write_steps_per_second:
                del values["batch_steps_per_second"]
            self._files["batches"].scalars(counts.batch, now, values)
        self._start_window(counts)

    def _write_epoch(self, batch, epoch, logs):
        numbers = self._numbers({**logs, **learning_rates(self.model)})
        of_validation = {name: value for name, value in numbers.items() if name.startswith("val_")}
        of_training = {name: value for name, value in numbers.items() if name not in of_validation}
        now = self._time()
        self._files["train"].scalars(batch, now, {f"epoch_{name}": value for name, value in of_training.items()})
        if of_validation:
            values = {f"epoch_{name.removeprefix('val_')}": value for name, value in of_validation.items()}
            self._files["validation"].scalars(batch, now, values)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write_with_keras(self._log_weights, batch)
        if self.embeddings_freq and epoch % self.embeddings_freq == 0 and not self._files["train"].is_lost:
            self._log_embeddings(batch)

    def _write_evaluation(self, logs):
        """Writes the results of an `evaluate` outside of `fit`, which says nothing about the points that are there already."""
        values = {f"evaluation_{name}_vs_iterations": value for name, value in self._numbers(logs).items()}
        self._file("validation").scalars(self._counters.read().batch, self._time(), values)

    def _file(self, name):
        """The events of training or of validation; outside of `fit`, of an evaluation."""
        if name not in self._files:
            self._evaluation = self._evaluation or EventFile(os.path.join(self.log_dir, "validation"), describe)
        return self._files.get(name) or self._evaluation

    def _enter_summaries(self):
        self._global_test_batch = 0
        if ranks().is_chief and self.update_freq != "epoch":
            self._relay.enter(self.model, self._counters.read().batch)

    def _numbers(self, logs):
        """The logs that a curve can show."""
        numbers = {str(name): scalar(value) for name, value in logs.items()}
        left_out = {name for name, number in numbers.items() if number is None} - self._left_out
        if left_out:
            self._left_out |= left_out
            warnings.warn(f"No curves of {', '.join(sorted(left_out))}: a curve shows one number at each step.", stacklevel=2)
        return {name: number for name, number in numbers.items() if number is not None}

    def _write_with_keras(self, write, *arguments):
        """Has the base class write the model, histograms or images: to a file aside, as only one of a directory's is read."""
        with tempfile.TemporaryDirectory() as self._train_dir, self.summary.record_if(True):
            write(*arguments)
            self._train_writer.close()
            self._writers.clear()
            self._files["train"].adopt(self._train_dir)

    def _write_profile(self):
        """Has the chief write what ranks have profiled, since no other rank writes to the run's directory."""
        profiles = self._profiler.take()
        if ranks().is_chief and not self._files["batches"].is_lost:
            name = f"batch_{self._start_batch:05d}_to_{self._stop_batch:05d}"
            session = Path(self.log_dir, "batches", "plugins", "profile", name)
            session.mkdir(parents=True, exist_ok=True)
            for name, profile in profiles.items():
                (session / name).write_bytes(profile)
