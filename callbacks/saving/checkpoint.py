"""`GlobalStepCheckpoint`: checkpoints named by the global step, from which training resumes exactly.

This file has the hooks that Keras calls. `save_policy.py` decides when a checkpoint is due, `checkpoint_maker.py` and `saver.py`
make it, and `resuming.py` resumes from it.
"""

import math
import os

import keras

from callbacks import preemption
from callbacks.copyable import Copyable
from callbacks.counting.counters import Counters, counters_of
from callbacks.counting.data_position import data_position_of
from callbacks.counting.logged_metrics import LoggedMetrics
from callbacks.counting.loop_checks import CustomLoopChecks, FitChecks
from callbacks.counting.resumed_epoch import resumed_epoch_of
from callbacks.counting.save_costs import save_costs_of
from callbacks.disk.checkpoint_directory import CheckpointDirectory
from callbacks.disk.template import Template
from callbacks.disk.writer import Writer
from callbacks.model import callback_state
from callbacks.model.fit_hooks import running_fit
from callbacks.model.hook_attributes import set_by_model, set_by_train_begin
from callbacks.model.last_in_list import LastInList
from callbacks.model.trainable_flags import trainable_flags_of
from callbacks.ranks import ranks
from callbacks.resuming.restoring import Checkpoint
from callbacks.resuming.resuming import Resumption
from callbacks.saving.best_state import BestState
from callbacks.saving.checkpoint_arguments import begin_alone, check_arguments
from callbacks.saving.checkpoint_maker import CheckpointMaker
from callbacks.saving.disk_room import DiskRoom
from callbacks.saving.pruner import Pruner
from callbacks.saving.save_policy import SavePolicy
from callbacks.saving.save_schedule import SaveSchedule
from callbacks.saving.saver import Saver
from callbacks.state.device_memory import DeviceMemory
from callbacks.state.unseen_state import warn_of_own_state, warn_of_unseen_state


class GlobalStepCheckpoint(Copyable, BestState):
    """Saves the whole state of training at regular batches, to files named by the global batch.

    ```python
    model.fit(data, epochs=20, callbacks=[
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, keep_last=3, resume=True),
    ])
    ```

    writes `run/model_batch_at_00050.weights.h5`, `run/model_batch_at_00100.weights.h5`, and so on. Stock Keras loads each of
    these files. Run again after a crash, the same lines resume from the newest intact file, even in the middle of an epoch, and
    end with the weights, learning rates and history of an uninterrupted run. The callback replaces
    `keras.callbacks.ModelCheckpoint`, except that `{batch}` counts all batches since training began.

    Args:
        filepath: the template of the file names (`callbacks.disk.template.Template`). Its fields are `{batch}`, `{epoch}`,
            `{samples}`, `{step}`, `{replicas}` and any logged metric. A template without a counter names one file, which each
            save replaces. If a name needs a validation metric, the first save waits for the first validation. A relative path
            starts at the current directory when the callback is made; `~` is the home directory. If the path is a symbolic
            link, a save replaces the link, not its target.
        monitor, save_best_only, mode, initial_value_threshold: as in ModelCheckpoint. `keep_best` uses the same monitor.
        verbose: 0 prints nothing, 1 prints a line at each save.
        save_weights_only: None lets the suffix decide. As in Keras, True needs `.weights.h5` and False `.keras`.
        save_freq: `"epoch"`; a number of global batches, to save at the first boundary at or after each multiple; or `"auto"`,
            to save as often as it pays (`callbacks.saving.save_interval.SaveInterval`).
        save_secs: also saves when so many seconds have passed since the last save.
        max_overhead: under `"auto"`, the largest share of time that saves may cost.
        keep_last: the number of newest files to keep.
        keep_every: keeps the first file at or after each multiple of this number of batches.
        keep_best: the number of files with the best `monitor` to keep. A file stays if any rule keeps it; without rules, all stay.
        background: writes in a thread while training continues. Training waits, with a warning, only if the disk is too slow.
        resume: True resumes from the newest finite checkpoint that verifies, if there is one; a path resumes from that file.

    Attributes:
        resumed_from: the checkpoint that training resumed from; None if there was none.
        initial_epoch: the 0-based epoch with which a custom training loop begins; set in `on_train_begin`.

    Raises:
        InputError: if an argument is invalid; or when training begins, before anything is written, for an unusable directory, a
            template in use by another run, a name that another template has taken, a checkpoint of another model, a metric that
            this run never logs, a metric without a known direction, or a callback whose state is not plain data.
        CheckpointWriteError: at the batch after a checkpoint could not be written.
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
        max_overhead: float = 0.01,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: int | None = None,
        background: bool = True,
        resume: bool | str | os.PathLike = False,
    ):
        self.template = Template(os.fsdecode(filepath)).absolute()
        keep = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
        check_arguments(self.template, save_weights_only, save_freq, save_secs, max_overhead, keep, resume)
        weights_only = self.template.suffix == ".weights.h5"
        super().__init__(self.template.text, monitor, verbose, save_best_only, weights_only, mode, "epoch", initial_value_threshold)
        self.save_freq, self.save_secs, self.max_overhead = save_freq, save_secs, max_overhead
        self.resume, self._keep, self._background = resume, keep, background
        self._settings = frozenset(vars(self)) - {"_model"}
        self._forget_run()

    def _forget_run(self):
        """Resets the attributes of a run, which are not copied with the callback."""
        self._model, self._trains, self.initial_epoch = None, False, 0
        self.resumed_from: Checkpoint | None = None
        self._policy = SavePolicy(self.save_freq, self.save_secs, self.max_overhead)
        self._writer, self._last_in_list = Writer(self._background), LastInList(self)
        self._callbacks: list[keras.callbacks.Callback] = []

    _counters: Counters = set_by_model()
    _maker: CheckpointMaker = set_by_train_begin()
    _loop: FitChecks | CustomLoopChecks = set_by_train_begin()
    _resumption: Resumption = set_by_train_begin()
    _logged: LoggedMetrics = set_by_train_begin()
    _directory: CheckpointDirectory = set_by_train_begin()
    disk_room: DiskRoom = set_by_train_begin()

    def set_model(self, model):
        super().set_model(model)
        self._counters, self._data, self._costs = counters_of(model), data_position_of(model), save_costs_of(model)
        trainable_flags_of(model).begin_fit()
        if self.resume is not False:
            warn_of_unseen_state(model)

    def on_train_begin(self, logs=None):
        fit = running_fit(self)
        loop, self._callbacks = fit.loop, fit.callbacks
        preemption.training_begins(lambda: loop.is_running)
        self._last_in_list.join(fit.callbacks if fit.has_list else None)
        self._counters.begin_training(in_fit=not fit.is_custom_loop)
        begin_alone(self, fit.callbacks, loop)
        self._directory = CheckpointDirectory(self.template, loop)
        ranks().on_chief(self._directory.claim)
        resumed_epoch_of(self.model).batches_per_epoch = steps = self._planned("steps")
        self._data.begin(fit, will_resume=self.resume is not False)
        epochs = self._planned("epochs")
        self._resumption = earlier = Resumption(self.model, self.template, self.resume, epochs, steps, fit.initial_epoch)
        self.resumed_from, self.initial_epoch = earlier.checkpoint, earlier.initial_epoch
        monitor = self.monitor if self._keep["keep_best"] else None
        self._logged = LoggedMetrics(self.template, fit.validates, fit.callbacks, earlier.logs, earlier.metrics, monitor)
        self._prepare_saves(fit)
        self._loop, self._trains = self._checks_of(fit), True
        self._last_in_list.run_without_list("on_train_begin")

    def on_all_callbacks_began(self):
        """Runs after every callback's `on_train_begin`, in which callbacks reset their state."""
        self._resumption.set_states(self._callbacks)
        callback_state.check(self._callbacks)
        if self.resume is not False:
            warn_of_own_state(self.model, self._callbacks)

    def on_epoch_begin(self, epoch, logs=None):
        self._stop_if_requested("on_epoch_begin")
        self._loop.begin_epoch(epoch)
        self._counters.begin_epoch(epoch)
        self._data.begin_epoch()
        self._maker.epoch.begin()
        self._last_in_list.run_without_list("on_epoch_begin", epoch)

    def on_all_callbacks_began_epoch(self):
        """Runs after every callback's `on_epoch_begin`."""
        if self._loop.is_custom and self._counters.batches_done:
            self._resumption.set_states(self._callbacks)  # the loop may skip the batch of the save itself

    def on_train_batch_begin(self, batch, logs=None):
        self._loop.begin_batch(batch)
        self._resumption.set_states_again(self._callbacks, "on_train_batch_begin", batch)
        if batch:  # not in `on_train_batch_end`, since later callbacks have not seen that batch yet
            self._stop_if_requested("on_train_batch_begin")
        self._maker.begin_batch()

    def on_train_batch_end(self, batch, logs=None):
        self._logged.last = logs or {}
        if self._counters.end_batch(self):
            self._loop.end_unseen_batch()
        self._resumption.set_states_again(self._callbacks, "on_train_batch_end", batch)
        self._maker.end_batch()
        preemption.request_stop_before_job_ends(2 * self._writer.slowest)
        self._last_in_list.run_without_list("on_train_batch_end", batch)

    def on_all_callbacks_ended_batch(self, batch):
        """Runs after every callback's `on_train_batch_end`."""
        self._resumption.set_states_again(self._callbacks, "on_all_callbacks_ended_batch", batch)
        if not self._loop.is_custom and self.model.stop_training:
            self._maker.stop_in_epoch(self._planned("steps"))

    def on_test_begin(self, logs=None):
        if self._trains:
            self._resumption.set_states_again(self._callbacks, "on_test_begin")
            self._stop_if_requested("on_test_begin")
            self._maker.epoch.begin_validation(self.model)

    def on_test_batch_end(self, batch, logs=None):
        if self._trains and ranks().stop_requested():
            # The next run repeats the validation; until then the epoch's metrics are those of its training.
            self._maker.epoch.restore_metrics()
            self._stop_if_requested("on_test_begin")

    def on_epoch_end(self, epoch, logs=None):
        if self._maker.epoch.states is None:
            self._counters.end_epoch()
        self._logged.end_epoch(logs or {})
        self._maker.end_epoch()
        self._last_in_list.run_without_list("on_epoch_end", epoch)

    def on_all_callbacks_ended_epoch(self, epoch):
        """Runs after every callback's `on_epoch_end`."""
        self._logged.check_after_epoch()
        self._maker.save_epoch()
        epochs = self._planned("epochs") or math.inf
        if getattr(self.model, "stop_training", False) or epoch + 1 >= epochs:  # no such attribute before `compile`
            self._maker.save_last("on_epoch_end")

    def on_train_end(self, logs=None):
        self._maker.save_last("on_train_end")
        self._trains = False
        self._last_in_list.leave(self._callbacks)
        self._maker.finish()
        self._resumption.end(self.newest, self._policy.saved_batch)
        self._directory.release()
        preemption.training_ends()

    def get_state(self):
        return self._policy.get_state()

    def set_state(self, state):
        self._policy.set_state(state)

    @property
    def batches_done(self) -> int:
        """The number of batches of this epoch that are trained on already, which a custom training loop skips."""
        return self._counters.batches_done

    @property
    def newest(self) -> str | None:
        """The path of the checkpoint saved last or resumed from; None before the first one."""
        return self._maker.newest if "_maker" in vars(self) else None

    def _planned(self, name):
        """Returns the `epochs` of the training, or the `steps` of an epoch; None if unknown."""
        return (self.params or {}).get(name)

    def _prepare_saves(self, fit):
        batch = self._counters.read().batch
        schedule = SaveSchedule(self._policy, self._counters, self._costs, self._writer)
        if not fit.is_custom_loop:
            first_epoch = self.initial_epoch if self.resumed_from else max(self.initial_epoch, fit.initial_epoch)
            planned = schedule.planned(self.params, first_epoch, self.model.steps_per_execution)
            ranks().on_chief(lambda: self._directory.check_names(planned))
        pruner = Pruner(self.template, self._keep, self.monitor, self._lower_is_better, batch)
        room = self.disk_room = DiskRoom(self.template, self._keep, *self._policy.still_to_come(self.params, batch))
        saver = Saver(self.model, self.template, self._writer, self._directory, pruner, room, DeviceMemory(), self.verbose)
        is_best = self._is_best if self.save_best_only else None
        newest = self.newest or (self.resumed_from.path if self.resumed_from else None)
        self._maker = CheckpointMaker(self.model, self.template, self._callbacks, schedule, saver, self._logged, is_best, newest)

    def _checks_of(self, fit):
        if fit.is_custom_loop:
            return CustomLoopChecks(self.model, self.template, self.initial_epoch)
        needs_metrics = self.template.metrics or self._keep["keep_best"] or self.save_best_only
        return FitChecks(self.model, self._check_metrics if needs_metrics else None)

    def _check_metrics(self):
        self._logged.check_before_first_batch(self.model)
        if self._keep["keep_best"] or self.save_best_only:
            self._check_direction()

    def _stop_if_requested(self, hook):
        """Saves and ends the process if a stop was requested on any rank. All ranks call it after the same batch."""
        if not (code := ranks().stop_requested()):
            return
        self._maker.save_last(hook)
        self._maker.finish()
        ranks().wait()
        ranks().barrier()
        preemption.ignore_signals()
        self._directory.release()
        raise preemption.Preempted(code, self.newest, preemption.reason(code))
