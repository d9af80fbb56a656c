"""`GlobalStepCheckpoint`: checkpoints named by the global step, from which training goes on exactly.

The hooks of Keras are here. When a checkpoint is due: `save_policy.py`. How it is made and written: `saver.py`. What happens
when training resumes: `resuming.py`.
"""

import functools
import math
import os

import keras

from callbacks import callback_state, preemption, state
from callbacks.best_state import BestState
from callbacks.checkpoint_arguments import check_alone, check_arguments
from callbacks.checkpoint_directory import CheckpointDirectory
from callbacks.copyable import Copyable
from callbacks.counters import counters_of
from callbacks.data_position import data_position_of
from callbacks.device_memory import DeviceMemory
from callbacks.disk_room import DiskRoom
from callbacks.epoch_state import EpochState
from callbacks.fit_hooks import fit_hooks_of, running_fit
from callbacks.keras_private import set_initial_epoch
from callbacks.last_in_list import LastInList
from callbacks.learning_rates import begin_fit as begin_rates
from callbacks.logged_metrics import LoggedMetrics
from callbacks.own_loop_checks import OwnLoopChecks
from callbacks.pruner import Pruner
from callbacks.ranks import ranks
from callbacks.restoring import Checkpoint
from callbacks.resumed_epoch import resumed_epoch_of
from callbacks.resuming import Resumption, find_checkpoint, warn_of_later_checkpoints
from callbacks.save_costs import save_costs_of
from callbacks.save_policy import SavePolicy
from callbacks.save_schedule import SaveSchedule
from callbacks.saver import Saver
from callbacks.snapshot import KerasPart
from callbacks.template import Template
from callbacks.tensorboard import GlobalStepTensorBoard
from callbacks.trainable_flags import trainable_flags_of
from callbacks.unseen_draws import warn_of_unseen_draws
from callbacks.writer import Writer, finish_writes


class GlobalStepCheckpoint(Copyable, BestState):
    """Saves the whole state of training every so many global batches, under names that count them over all restarts.

    ```python
    model.fit(data, epochs=20, callbacks=[
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, keep_last=3, resume=True),
    ])
    ```

    writes `run/model_batch_at_00050.weights.h5`, `run/model_batch_at_00100.weights.h5`, and so on. Stock Keras loads each of
    them. Started again after a crash, the same lines resume from the newest intact file, in the middle of an epoch too, and
    end with the weights, the learning rates and the history of the uninterrupted run. It takes the place of
    `keras.callbacks.ModelCheckpoint` as it is, except that `{batch}` counts all batches ever trained on.

    Args:
        filepath: the template of the files' names (`callbacks.template.Template`): the fields `{batch}` `{epoch}` `{samples}`
            `{step}` `{replicas}`, and any logged metric. Without a counter it is one file, replaced at each save. A file
            whose name needs a metric of the validation waits for the first one. A relative path starts at the directory that
            is current when the callback is made; `~` is the home directory. A save replaces a symbolic link in the place of
            a file, not the file that it names.
        monitor, save_best_only, mode, initial_value_threshold: as in ModelCheckpoint. `keep_best` uses the same monitor.
        verbose: 0 for silence, 1 for a line at each save.
        save_weights_only: None lets the suffix decide. As in Keras, True needs `.weights.h5` and False `.keras`.
        save_freq: `"epoch"`; or global batches between saves: at the first boundary at or after each multiple; or `"auto"`: as
            often as pays, within a budget (`callbacks.save_interval.SaveInterval`).
        save_secs: also every so many seconds.
        max_overhead: under `"auto"`, the share of time that saves may cost.
        keep_last: keep the newest so many files.
        keep_every: keep the first file at or after each multiple of so many batches.
        keep_best: keep the so many files with the best `monitor`. A file stays if any rule keeps it; without a rule all stay.
        background: write in a thread while training goes on; it waits, with a warning, only for a disk that is too slow.
        resume: True resumes from the newest checkpoint that verifies and is finite, if there is one; a path resumes from that file.

    Attributes:
        resumed_from: the checkpoint that training has resumed from; None if from none.
        initial_epoch: the epoch, 0-based, with which a loop of one's own begins; known after `on_train_begin`.

    Raises:
        InputError: if an argument is not one of these; or when training begins, before anything is written: for an unusable
            directory, a template in use by another run, a checkpoint of another model, a name or `keep_best` with a metric
            that this run will never have, a metric without a known direction, or a callback whose state is not plain data.
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
        self.template = Template(os.fspath(filepath)).absolute()
        keep = {"keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
        check_arguments(self.template, save_weights_only, save_freq, save_secs, max_overhead, keep, resume)
        weights_only = self.template.suffix == ".weights.h5"
        super().__init__(self.template.text, monitor, verbose, save_best_only, weights_only, mode, "epoch", initial_value_threshold)
        self.save_freq, self.save_secs, self.max_overhead = save_freq, save_secs, max_overhead
        self.resume = resume
        self._keep = keep
        self._background = background
        self._settings = frozenset(vars(self)) - {"_model"}
        self._forget_run()

    def _forget_run(self):
        """Sets what belongs to a run, and is not copied with the callback."""
        self._model = None
        self.resumed_from: Checkpoint | None = None
        self._policy = SavePolicy(self.save_freq, self.save_secs, self.max_overhead)
        self._writer = Writer(self._background)
        self._resumption: Resumption | None = None
        self._last_in_list = LastInList(self)
        self._callbacks: list[keras.callbacks.Callback] = []
        self._has_list = self._trains = self._epoch_is_saved = False
        self._keras_part: KerasPart | None = None
        self._last_path: str | None = None
        self._own_loop: OwnLoopChecks | None = None
        self._epoch = EpochState()
        self.initial_epoch = 0

    _saver: Saver  # from `on_train_begin` on, as are the next ones
    _schedule: SaveSchedule
    _logged: LoggedMetrics
    _directory: CheckpointDirectory
    disk_room: DiskRoom

    def set_model(self, model):
        super().set_model(model)
        self._counters, self._data, self._costs = counters_of(model), data_position_of(model), save_costs_of(model)
        trainable_flags_of(model).begin_fit()
        if self.resume is not False:
            warn_of_unseen_draws(model)

    def on_train_begin(self, logs=None):
        fit = running_fit(self)
        loop = fit.loop
        preemption.training_begins(lambda: loop.is_running)
        self._callbacks = fit.callbacks
        self._has_list = fit.has_list
        self._last_in_list.join(self._callbacks)
        check_alone(self, self._callbacks)
        self._directory = directory = CheckpointDirectory(self.template)
        finish = functools.partial(finish_writes, self.template.matches)
        ranks().on_chief(lambda: directory.claim(fit.loop, finish))
        self._counters.begin_training(in_fit=not fit.is_own_loop)
        resumed_epoch_of(self.model).batches_per_epoch = (self.params or {}).get("steps")
        self._data.begin(fit, will_resume=self.resume is not False)
        self._resume(fit)
        begins_at = self._counters.read().batch
        if ranks().is_chief and self.resume is not True:
            warn_of_later_checkpoints(self.template, begins_at)
        self._policy.begin(begins_at)
        self._schedule = SaveSchedule(self._policy, self._counters, self._costs, self._writer)
        pruner = Pruner(self.template, self._keep, self.monitor, self._lower_is_better, begins_at)
        self.disk_room = DiskRoom(self.template, self._keep, *self._policy.still_to_come(self.params, begins_at))
        self._saver = Saver(
            self.model, self.template, self._writer, directory, pruner, self.disk_room, DeviceMemory(), self.verbose
        )
        self._own_loop = OwnLoopChecks(self.model, self.template, self.initial_epoch) if fit.is_own_loop else None
        if self._own_loop is None and (self.template.metrics or self._keep["keep_best"] or self.save_best_only):
            fit_hooks_of(self.model).before_first_batch(self._check_metrics)
        self._trains = True
        if not self._has_list:
            self.on_all_callbacks_began()

    def on_all_callbacks_began(self):
        """Comes after every callback's `on_train_begin`, in which callbacks forget their state."""
        if self._resumption:
            self._resumption.set_states(self._callbacks)
        callback_state.check(self._callbacks)

    def on_epoch_begin(self, epoch, logs=None):
        self._leave_if_asked("on_epoch_begin")
        if self._own_loop:
            self._own_loop.begin_epoch(epoch)
        self._counters.begin_epoch(epoch)
        self._data.begin_epoch()
        self._epoch.begin()
        if not self._has_list:
            self.on_all_callbacks_began_epoch()

    def on_all_callbacks_began_epoch(self):
        """Comes after every callback's `on_epoch_begin`."""
        if self._own_loop and self._resumption and self._counters.batches_done:
            self._resumption.set_states(self._callbacks)  # the loop may begin behind the place of the save

    def on_train_batch_begin(self, batch, logs=None):
        if self._own_loop:
            self._own_loop.begin_batch(batch)
        self._set_states_again("on_train_batch_begin", batch)
        if batch:  # here, and not at the end of the batch before, where some callbacks have yet to see that batch
            self._leave_if_asked("on_train_batch_begin")
        self._schedule.begin_batch()

    def on_train_batch_end(self, batch, logs=None):
        self._logged.last = logs or {}
        if self._counters.end_batch(self) and self._own_loop:
            self._own_loop.end_unseen_batch()
        self._set_states_again("on_train_batch_end", batch)
        self._saver.prepare()
        self._writer.raise_failure()
        if self._schedule.is_due():
            self._save("on_train_batch_end")
        preemption.ask_before_job_ends(2 * self._writer.slowest)
        if not self._has_list:
            self.on_all_callbacks_ended_batch(batch)

    def on_all_callbacks_ended_batch(self, batch):
        """Comes after every callback's `on_train_batch_end`."""
        self._set_states_again("on_all_callbacks_ended_batch", batch)
        if self._own_loop is None and self.model.stop_training:
            self._stop_in_epoch()

    def on_test_begin(self, logs=None):
        if self._trains:
            self._set_states_again("on_test_begin")
            self._leave_if_asked("on_test_begin")
            self._epoch.begin_validation(self.model)

    def on_test_batch_end(self, batch, logs=None):
        if self._trains and ranks().asked_to_leave():
            # Validation is done again by the next run; until then the epoch's own metrics are those of its training.
            self._epoch.restore_metrics()
            self._leave_if_asked("on_test_begin")

    def on_epoch_end(self, epoch, logs=None):
        if self._epoch.states is None:
            self._counters.end_epoch()
        self._logged.end_epoch(logs or {})
        self._epoch_is_saved = self._policy.is_due_after_epoch()
        # The weights in the file are those of this place in the list, as with ModelCheckpoint. The state that training resumes
        # from is that after all callbacks.
        self._keras_part = self._saver.plan().read_keras_part() if self._epoch_is_saved else None
        if not self._has_list:
            self.on_all_callbacks_ended_epoch(epoch)

    def on_all_callbacks_ended_epoch(self, epoch):
        """Comes after every callback's `on_epoch_end`."""
        self._logged.check_after_epoch()
        if self._epoch.states:
            self._epoch.restore_metrics()
        if self._epoch_is_saved and not (self._epoch.states and self._is_saved()):
            self._save("on_epoch_end")
        self._keras_part = None
        epochs = (self.params or {}).get("epochs") or math.inf
        if getattr(self.model, "stop_training", False) or epoch + 1 >= epochs:  # no such attribute before `compile`
            self._save_if_trained("on_epoch_end")

    def on_train_end(self, logs=None):
        self._save_if_trained("on_train_end")
        self._trains = False
        self._last_in_list.leave(self._callbacks)
        set_initial_epoch(self.model, None)
        self._schedule.finish()
        self._saver.free_memory()
        self._resumption = None
        self._directory.release()
        preemption.training_ends()

    def get_state(self):
        return self._policy.get_state()

    def set_state(self, state):
        self._policy.set_state(state)

    @property
    def batches_done(self) -> int:
        """How many batches of the epoch that begins are trained on already, for a loop of one's own to leave out."""
        return self._counters.batches_done

    @property
    def newest(self) -> str | None:
        """The path of the checkpoint saved last, or resumed from."""
        return self._last_path or (self.resumed_from.path if self.resumed_from else None)

    def _resume(self, fit):
        logs, metrics, self._resumption = {}, {}, None
        self.resumed_from = find_checkpoint(self.template, self.resume)
        rates = begin_rates(self.model)
        if self.resumed_from:
            self._costs.newest = (self.resumed_from.batch, self.resumed_from.path)
            self._resumption = Resumption(self.model, self.resumed_from, (self.params or {}).get("epochs"), rates)
            logs, metrics = self._resumption.logs, self.resumed_from.metrics
        self.initial_epoch = self._resumption.initial_epoch if self._resumption else 0
        monitor = self.monitor if self._keep["keep_best"] else None
        self._logged = LoggedMetrics(self.template, fit.validates, fit.callbacks, logs, metrics, monitor)

    def _check_metrics(self):
        self._logged.check_before_first_batch(self.model)
        if self._keep["keep_best"] or self.save_best_only:
            self._check_direction()

    def _set_states_again(self, hook, batch=0):
        if self._resumption:
            self._resumption.set_states_again(self._callbacks, hook, batch)

    def _save_if_trained(self, hook):
        """Makes a last save, unless that very state was just saved."""
        if not self.save_best_only and not self._is_saved():
            self._policy.ends = True
            self._save(hook)

    def _is_saved(self):
        return not self._counters.reached(self._policy.saved_batch + 1)

    def _stop_in_epoch(self):
        """Keras ends the epoch after this batch. Where batches are left, a resume finishes it, as if nobody had stopped."""
        steps = (self.params or {}).get("steps")
        if steps is None or self._counters.read().batches_in_epoch < steps:
            self._epoch.stop(self._callbacks)
            if not self.template.metrics:  # these come when the epoch ends
                self._save_if_trained("on_all_callbacks_ended_batch")

    def _leave_if_asked(self, hook):
        """Saves and leaves where any rank was asked to; all ranks come here after the same batch, or none."""
        code = ranks().asked_to_leave()
        if not code:
            return
        self._save_if_trained(hook)
        self._schedule.finish()
        ranks().settle()
        ranks().barrier()
        self._directory.release()
        preemption.ignore_signals()
        raise preemption.Preempted(code, self.newest, preemption.reason(code))

    def _save(self, hook):
        """Takes a snapshot and has it written, unless its name needs a metric that is yet to come, or it is not the best."""
        metrics = self._logged.newest()
        if self.template.missing(metrics):
            self._policy.postpone()
            return
        if self.save_best_only and not self._is_best(metrics):
            return
        for callback in self._callbacks:
            if isinstance(callback, GlobalStepTensorBoard):
                callback.end_batch(self._logged.last)  # its curves and its state are those after this batch
        began = self._policy.clock()
        self._saver.want_memory()
        self._writer.make_room(f"The save of batch {self._counters.read().batch}")
        states = self._epoch.states or callback_state.gather(self._callbacks, hook)
        snapshot = state.take(self.model, self._saver.plan(), states, self._logged.last, metrics, self._keras_part)
        place = self._data.place(snapshot.counts)
        snapshot.header["data"] = place and place.to_json()
        snapshot.header["template"] = self.template.last_part
        path = self.template.format(snapshot.counts, metrics)
        self._policy.saved(snapshot.counts.batch)
        self._last_path = path
        if ranks().is_chief:
            self._saver.submit(snapshot, path)
        self._schedule.note_blocked(self._policy.clock() - began)
