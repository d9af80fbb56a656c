"""`GlobalStepCheckpoint`: checkpoints named by the global step, from which training goes on exactly."""

import contextlib
import functools
import math
import os
import tempfile
import time
import warnings

import keras

from callbacks import files, preemption, retention, state, steering
from callbacks.copyable import Copyable
from callbacks.counters import Counts, counters_of
from callbacks.device_memory import DeviceMemory
from callbacks.errors import InputError
from callbacks.fit_hooks import fit_hooks_of, running_fit
from callbacks.host_memory import HostMemory
from callbacks.keras_private import global_seed_generator, set_initial_epoch
from callbacks.last_in_list import LastInList
from callbacks.lock import Lock
from callbacks.metric_results import metric_results
from callbacks.ranks import ranks
from callbacks.replicas import components
from callbacks.restoring import Checkpoint, find_on_chief, latest_checkpoint, named_checkpoint, own_checkpoints, read_stored
from callbacks.resumed_epoch import resumed_epoch_of
from callbacks.save_costs import save_costs_of
from callbacks.snapshot import KerasPart, SnapshotPlan
from callbacks.state_tree import StateTree
from callbacks.template import FIELDS, Template
from callbacks.tensorboard import GlobalStepTensorBoard
from callbacks.writer import Writer

TIME_TO_LEAVE = 10  # seconds that a run needs beside the save, to agree with other ranks and to end


class GlobalStepCheckpoint(Copyable, keras.callbacks.ModelCheckpoint):
    """Saves the whole state of training every so many global batches, under names that count them over all restarts.

    ```python
    model.fit(data, epochs=20, callbacks=[
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, keep_last=3, resume=True),
    ])
    ```

    writes `run/model_batch_at_00050.weights.h5`, `run/model_batch_at_00100.weights.h5`, and so on. Stock Keras loads each of
    them. Started again after a crash, the same lines go on from the newest whole file, in the middle of an epoch too, and
    end with the weights, the learning rates and the history that the uninterrupted run would have had. Data that can seek
    (`Counters.position`) starts at the right sample; of any other data, the batches of the epoch that are already trained on
    are read and dropped, which costs their reading.

    It takes the place of `keras.callbacks.ModelCheckpoint` as it is, but that `{batch}` counts all batches ever trained on.

    Args:
        filepath: the template of the files' names (`callbacks.template.Template`): the fields `{batch}` `{epoch}` `{samples}`
            `{step}` `{replicas}`, and any logged metric. Without a counter it is one file, replaced at each save. A file
            whose name needs a metric of the validation waits for the first one. A relative path starts at the directory that
            is current when the callback is made; `~` is the home directory.
        monitor, save_best_only, mode, initial_value_threshold: as in ModelCheckpoint; with an integer `save_freq` too.
            `keep_best` goes by the same monitor.
        verbose: 0 for silence, 1 for a line at each save.
        save_weights_only: None lets the suffix decide. As in Keras, True needs `.weights.h5` and False `.keras`.
        save_freq: `"epoch"`, or after how many global batches; under `steps_per_execution` at the first boundary at or
            after each multiple.
        save_secs: also every so many seconds.
        keep_last: keep the newest so many files.
        keep_every: keep the first file at or after each multiple of so many batches.
        keep_best: keep the so many files with the best `monitor`. A file stays if any of these rules keeps it; without a rule
            all stay.
        background: write in a thread while training goes on. Training then waits only for a disk that is slower than the
            saves come, with a warning. An error of the disk is raised at the next batch.
        resume: True goes on from the newest checkpoint that verifies, if there is one; a path goes on from that file.

    Raises:
        InputError: if an argument is not one of these; or when training begins, before anything is written: for an unusable
            directory, a template in use by another run, a checkpoint of another model, or a name with a metric that this run
            will never have.
        CheckpointWriteError: during training, if a checkpoint could not be written.
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool | None = None,
        mode: str = "auto",
        save_freq: int | str = "epoch",
        initial_value_threshold: float | None = None,
        *,
        save_secs: float | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: int | None = None,
        background: bool = True,
        resume: bool | str | os.PathLike = False,
    ):
        self.template = Template(os.fspath(filepath)).absolute()
        keep = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
        _check_arguments(self.template, save_weights_only, save_freq, save_secs, keep)
        weights_only = self.template.suffix == ".weights.h5"
        super().__init__(
            self.template.text, monitor, verbose, save_best_only, weights_only, mode, save_freq, initial_value_threshold
        )
        self.save_secs = save_secs
        self.resume = resume
        self._keep = keep
        self._background = background
        self._clock = time.monotonic
        self._settings = frozenset(vars(self)) - {"_model"}
        self._forget_run()

    def _forget_run(self):
        """Sets what belongs to a run, and is not copied with the callback."""
        self._model = None
        self.resumed_from: Checkpoint | None = None
        self._writer = Writer(self._background)
        self._last_in_list = LastInList(self.on_all_callbacks_began, self.on_all_callbacks_ended_epoch)
        self._memory = HostMemory()
        self._device_memory = DeviceMemory()
        self._plan: SnapshotPlan | None = None
        self._seeds: keras.random.SeedGenerator | None = None
        self._keras_part: KerasPart | None = None
        self._restored: state.StoredState | None = None
        self._last_saved: Counts | None = None
        self._last_path: str | None = None
        self._next_save = 0
        self._epoch_is_saved = False
        self._waits_for_metrics = False
        self._logs: dict[str, float] = {}  # the last that Keras reported
        self._validated: dict[str, float] = {}
        self._trains = self._has_prepared = self._has_told_of_wait = False
        self._metrics_of_epoch: list = []

    best: float | None  # of the monitored metric

    def set_model(self, model):
        super().set_model(model)
        self._counters, self._hooks, self._costs = counters_of(model), fit_hooks_of(model), save_costs_of(model)

    def on_train_begin(self, logs=None):
        preemption.training_begins()
        fit = running_fit(self)
        self._callbacks = fit.callbacks
        self._has_list = fit.has_list
        self._last_in_list.join(self._callbacks)
        self._check_alone()
        ranks().on_chief(lambda: self._claim(fit.loop))
        self._kept = None
        self._validated = {}
        self._epoch_is_saved = self._waits_for_metrics = False
        resumed_epoch_of(self.model).batches_per_epoch = (self.params or {}).get("steps")
        self._resume()
        self._begins_at = self._counters.read().batch
        self._warn_of_later_checkpoints()
        self._last_saved = self._counters.read() if self.resumed_from else None
        self._last_time = self._clock()
        self._plan_next_save()
        if self.template.metrics and type(self.model).train_step is keras.Model.train_step:
            # What another train step logs shows only when it does.
            self._hooks.before_first_batch(lambda: self._check_metrics(fit.validates))
        self._trains = True
        if not self._has_list:
            self.on_all_callbacks_began()

    def on_epoch_begin(self, epoch, logs=None):
        self._leave_if_asked()
        self._counters.begin_epoch(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if batch:  # here, and not at the end of the batch before, where some callbacks have yet to see that batch
            self._leave_if_asked()

    def on_train_batch_end(self, batch, logs=None):
        self._logs = logs or {}
        if not self._has_prepared:
            self._prepare_saves()
        self._writer.raise_failure()
        if self._next_save and self._counters.reached(self._next_save):
            self._save()
            self._plan_next_save()
        elif self.save_secs is not None and ranks().any(ranks().is_chief and self._clock() - self._last_time >= self.save_secs):
            self._save()
        self._ask_before_job_ends()

    def on_test_begin(self, logs=None):
        if self._trains:
            self._leave_if_asked()
            strategy = self.model.distribute_strategy
            parts = [part for variable in self.model.metrics_variables for part in components(strategy, variable)]
            self._metrics_of_epoch = [(part, part.read_value()) for part in parts]

    def on_test_batch_end(self, batch, logs=None):
        if self._trains and ranks().asked_to_leave():
            # Validation is done again by the next run; until then the epoch's own metrics are those of its training.
            for part, value in self._metrics_of_epoch:
                part.assign(value)
            self._leave_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        self._counters.end_epoch()
        self._logs = logs or {}
        self._validated = {name: value for name, value in self._logs.items() if name.startswith("val_")}
        self._epoch_is_saved = self.save_freq == "epoch" or self._waits_for_metrics
        self._waits_for_metrics = False
        # The weights in the file are those of this place in the list, as with ModelCheckpoint. The state that training resumes
        # from is that after all callbacks.
        self._keras_part = self._plan_of_now().read_keras_part() if self._epoch_is_saved else None
        if not self._has_list:
            self.on_all_callbacks_ended_epoch(epoch)

    def on_all_callbacks_began(self):
        """Comes after every callback's `on_train_begin`, in which callbacks forget their state."""
        if self._restored:
            steering.give_back(self._callbacks, self._restored.header["callbacks"], self._restored.arrays)
            self._restored = None

    def on_all_callbacks_ended_epoch(self, epoch):
        """Comes after every callback's `on_epoch_end`."""
        if self._epoch_is_saved:
            self._save()
        self._keras_part = None
        if self.model.stop_training or epoch + 1 >= (self.params or {}).get("epochs", math.inf):
            self._save_if_trained()

    def on_train_end(self, logs=None):
        self._save_if_trained()
        self._trains = self._has_prepared = False
        self._last_in_list.leave(self._callbacks)
        set_initial_epoch(self.model, None)
        self._writer.finish()
        self._memory, self._device_memory, self._plan = HostMemory(), DeviceMemory(), None
        self._seeds = None
        if ranks().is_chief:
            self._lock.release()

    @property
    def newest(self) -> str | None:
        """The path of the checkpoint saved last, or gone on from."""
        if self._last_path:
            return self._last_path
        return self.resumed_from.path if self.resumed_from else None

    def _claim(self, loop):
        _prepare_directory(self.template.directory)
        files.finish_own(self.template)
        self._lock = Lock(self.template.text, self.template.directory)
        self._lock.acquire(loop)
        files.sweep(self.template, self._lock.taken_from)

    def _resume(self):
        self.resumed_from = self._restored = None
        if not self.resume:
            return
        find = latest_checkpoint if self.resume is True else named_checkpoint
        what = self.template.text if isinstance(self.resume, bool) else os.fspath(self.resume)
        self.resumed_from = find_on_chief(lambda: find(what))
        if self.resumed_from:
            self._restored = stored = state.read_state(self.resumed_from.path)
            self._assign_or_wait(stored)
            stored.resume_epoch(self.model)
            self._logs = stored.header["logs"]
            self._validated = {name: value for name, value in self.resumed_from.metrics.items() if name.startswith("val_")}
            begin = self.params["epochs"] if stored.header["stopped"] else self._counters.epoch_to_begin
            set_initial_epoch(self.model, begin)

    def _assign_or_wait(self, stored):
        """Restores the variables, before the first batch if only that can build them."""
        try:
            stored.assign_to(self.model)
        except state.NotBuilt:
            self._hooks.before_first_batch(lambda: stored.assign_to(self.model))
            return
        if not stored.counts.epoch_ended:
            self._keep_learning_rates()

    def _keep_learning_rates(self):
        """What callbacks do to a rate when an epoch begins was done already, if it began in an earlier process."""
        for optimizer in StateTree(self.model).optimizers.values():
            rate = getattr(optimizer, "learning_rate", None)
            if isinstance(rate, keras.Variable):  # not a schedule
                restored = keras.ops.convert_to_numpy(rate)
                self._hooks.before_first_batch(functools.partial(setattr, optimizer, "learning_rate", restored), build=False)

    def _plan_next_save(self):
        if self.save_freq != "epoch":
            self._next_save = (self._counters.read().batch // self.save_freq + 1) * self.save_freq

    def _save_if_trained(self):
        """Makes a last save, unless that very state was just saved."""
        saved = self._last_saved.batch if self._last_saved else self._begins_at
        if not self.save_best_only and self._counters.reached(saved + 1):
            self._save()

    def _leave_if_asked(self):
        """Saves and leaves where any rank was asked to; all ranks come here after the same batch, or none."""
        code = ranks().asked_to_leave()
        if not code:
            return
        self._save_if_trained()
        self._writer.finish()
        ranks().settle()
        ranks().barrier()
        if ranks().is_chief:
            self._lock.release()
        preemption.ignore_signals()
        raise preemption.Preempted(code, self.newest)

    def _ask_before_job_ends(self):
        """A save that the job's end would cut off is not begun: the run leaves while there is still time for one."""
        left = preemption.seconds_left()
        if left is not None and left < TIME_TO_LEAVE + 2 * self._writer.slowest:
            preemption.ask(preemption.WARNED)

    def _save(self):
        metrics = {**self._validated, **self._logs}
        missing = [name for name in self.template.metrics if name not in metrics]
        if missing:
            self._waits_for_metrics = True
            return
        if self.save_best_only and not self._is_best(metrics):
            return
        for callback in self._callbacks:
            if isinstance(callback, GlobalStepTensorBoard):
                callback.end_batch(self._logs)  # its curves and its state are those after this batch
        began = time.monotonic()
        self._memory.want()
        self._writer.make_room(f"The save of batch {self._counters.read().batch}")
        snapshot = state.take(self.model, self._plan_of_now(), self._callbacks, self._logs, metrics, self._keras_part)
        snapshot.header["template"] = os.path.basename(self.template.text)
        path = self.template.format(snapshot.counts, metrics)
        self._last_saved, self._last_path, self._last_time = snapshot.counts, path, self._clock()
        if ranks().is_chief:
            if self._background and (full := self._device_memory.full(snapshot.tensors())):
                self._fetch_at_once(snapshot, full)
            self._writer.submit(path, lambda: self._write(snapshot, path))
        self._costs.blocked += time.monotonic() - began

    def _prepare_saves(self):
        """Does what the first save would have to do, now that the first batch has made every variable."""
        self._has_prepared = True
        plan = self._plan_of_now()
        plan.read_keras_part()
        if self._background and ranks().is_chief:
            self._writer.prepare(lambda: self._memory.provide(plan.memory))

    def _fetch_at_once(self, snapshot, full):
        """Copies the values before the next batch would make TensorFlow copy them on a device that has no room for that."""
        began = time.monotonic()
        self._writer.prepare(lambda: snapshot.fetch(self._memory)).result()  # in the thread that may still be making the memory
        if not self._has_told_of_wait:
            self._has_told_of_wait = True
            warnings.warn(
                f"Training waited {time.monotonic() - began:.2f} s while {snapshot.size / 1e6:.3g} MB were copied from "
                f"{', '.join(full)}, which has no room for a second copy of the training state; so it will at each save. "
                "A smaller batch leaves room.",
                stacklevel=2,
            )

    def _plan_of_now(self):
        if self._plan is None or not self._plan.is_current():
            self._seeds = self._seeds or global_seed_generator()
            self._plan = SnapshotPlan(self.model, self.template.suffix == ".keras", self._seeds)
        return self._plan

    def _write(self, snapshot, path):
        began = time.monotonic()
        counts = snapshot.counts
        if self._background:
            snapshot.fetch(self._memory)
        if not os.path.isdir(self.template.directory):  # somebody has tidied up
            os.makedirs(self.template.directory, exist_ok=True)
            self._lock.renew()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        trailer = files.Trailer(counts.batch, counts.step, counts.epoch, counts.samples)
        size = files.commit(path, trailer, lambda output: state.write(snapshot, output), self._lock.check)
        self._costs.seconds += time.monotonic() - began
        self._costs.size += size
        if self.verbose:
            print(f"\nBatch {counts.batch}: saved {path} ({size / 1e6:.1f} MB in {time.monotonic() - began:.2f} s)", flush=True)
        self._delete_old(path, counts.batch, snapshot.header["metrics"])
        if self._background:
            snapshot.release(self._memory)
        return size

    def _is_best(self, metrics):
        value = metrics.get(self.monitor)
        if value is None:
            warnings.warn(f"Can save best model only with {self.monitor} available.", stacklevel=3)
            return True
        if self.monitor_op is None:
            self._set_monitor_op()
        if not self._is_improvement(value, self.best):
            return False
        self.best = value
        return True

    def _delete_old(self, path, batch, metrics):
        if not any(self._keep.values()):
            return
        if self._kept is None:
            # Later ones than where this run began are another run's.
            present = own_checkpoints(self.template)
            earlier = [(each, stored) for each, trailer, stored in present if trailer.batch <= self._begins_at]
            self._kept = {each: self._kept_of(each, stored.counts.batch, stored.metrics) for each, stored in earlier}
        self._kept[path] = self._kept_of(path, batch, metrics)
        if self._keep["keep_best"] and self.monitor_op is None:
            self._set_monitor_op()
        lower = self._keep["keep_best"] is None or self.monitor_op is keras.ops.less
        for old in retention.to_delete(list(self._kept.values()), **self._keep, lower_is_better=lower):
            stored = read_stored(old)  # once more: another program may have replaced the file since
            if stored is not None and stored.is_made_by(self.template, old):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(old)
            del self._kept[old]

    def _kept_of(self, path, batch, metrics):
        return retention.Kept(path, batch, metrics.get(self.monitor))

    def _warn_of_later_checkpoints(self):
        if self.resume is True or not self.template.counters or not ranks().is_chief:
            return
        newest = next(own_checkpoints(self.template), None)
        if newest and newest[1].batch > self._begins_at:
            warnings.warn(
                f"{newest[0]} is of another run, which came to batch {newest[1].batch}; this one begins at {self._begins_at}. "
                "It replaces files of equal names and deletes none of the others. Use another directory, or resume=True.",
                stacklevel=2,
            )

    def _check_alone(self):
        for other in self._callbacks:
            if isinstance(other, GlobalStepCheckpoint) and other is not self and other.template == self.template:
                raise InputError(f"Two callbacks of this fit write to {self.template.text!r}. Give each its own template.")

    def _check_metrics(self, validates):
        """Raises before the first batch if a name needs a metric that will never come."""
        names = list(metric_results(self.model))
        valid = {*names, "learning_rate"} | ({f"val_{name}" for name in names} if validates is not False else set())
        for name in self.template.metrics:
            if name not in valid:
                why = " (fit has no validation_data)" if name.startswith("val_") and validates is False else ""
                raise InputError(
                    f"{{{name}}} in {self.template.text!r} is neither a counter nor a metric of this run{why}. Use one of: "
                    + " ".join(f"{{{each}}}" for each in (*FIELDS, *sorted(valid)))
                )


def _check_arguments(template, save_weights_only, save_freq, save_secs, keep):
    files.check_name_lengths(template)
    weights_only = template.suffix == ".weights.h5"
    if save_weights_only not in (None, weights_only):
        raise InputError(
            "The suffix decides what is saved: .weights.h5 for weights only, .keras for the whole model. "
            f"Received: save_weights_only={save_weights_only} with {template.text!r}"
        )
    if save_freq != "epoch" and not _is_positive(save_freq):
        raise InputError(f"Unrecognized save_freq: {save_freq!r}. Expected 'epoch' or a number of batches, 1 or more.")
    if save_secs is not None and not save_secs > 0:
        raise InputError(f"save_secs is a number of seconds above 0, or None. Received: {save_secs!r}")
    for name, value in keep.items():
        if value is None:
            continue
        if not _is_positive(value):
            raise InputError(f"{name} is a whole number, 1 or more, or None. Received: {value!r}")
        if not template.counters:
            raise InputError(
                f"{name} needs names that differ: a template with a counter, such as model_batch_at_{{batch:05d}}. "
                f"Received: {template.text!r}"
            )


def _is_positive(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _prepare_directory(directory):
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"Checkpoints cannot be written to {directory}: {error.strerror}. Give a directory that can be written to."
        ) from None
