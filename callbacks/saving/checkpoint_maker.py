"""Makes the checkpoints of one training: which state gets a file, under which name, and what is in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from callbacks.counting.counters import counters_of
from callbacks.counting.data_position import data_position_of
from callbacks.counting.epoch_state import EpochState
from callbacks.counting.logged_metrics import LoggedMetrics
from callbacks.disk.template import Template
from callbacks.model import callback_state
from callbacks.ranks import ranks
from callbacks.saving.save_schedule import SaveSchedule
from callbacks.saving.saver import Saver
from callbacks.state import state
from callbacks.state.snapshot import KerasPart


class CheckpointMaker:
    """Saves the state of one training. All ranks call it after the same batch.

    Args:
        model: the model in training.
        template: the names of the checkpoints.
        callbacks: all callbacks of the training.
        schedule: when a checkpoint is due.
        saver: writes snapshots.
        logged: the metrics, for the names and the files.
        is_best: returns whether metrics are the best so far; None if every state is saved.
        newest: the path of the newest checkpoint before this training; None if there is none.

    Attributes:
        epoch: the state of the epoch in progress.
        newest: the path of the checkpoint saved last.
    """

    def __init__(
        self,
        model: keras.Model,
        template: Template,
        callbacks: Sequence[keras.callbacks.Callback],
        schedule: SaveSchedule,
        saver: Saver,
        logged: LoggedMetrics,
        is_best: Callable[[Mapping[str, Any]], bool] | None,
        newest: str | None,
    ):
        self._model, self._template, self._callbacks = model, template, callbacks
        self._schedule, self._saver, self._logged, self._is_best = schedule, saver, logged, is_best
        self._counters, self._data = counters_of(model), data_position_of(model)
        self._keras_part: KerasPart | None = None
        self._is_epoch_due = False
        self.epoch = EpochState()
        self.newest = newest

    def begin_batch(self) -> None:
        """Notes the start of a batch, or of an execution of several. Call it in `on_train_batch_begin`."""
        self._schedule.begin_batch()

    def end_batch(self) -> None:
        """Saves if a checkpoint is due. Call it in `on_train_batch_end`.

        Raises:
            CheckpointWriteError: if this checkpoint is written synchronously and fails, or an earlier one has failed.
        """
        self._saver.prepare()
        self._saver.raise_failure()
        if self._schedule.is_due():
            self._save("on_train_batch_end")

    def save_last(self, hook: str) -> None:
        """Saves at the end of training, unless that very state was just saved or only the best states are saved."""
        if self._is_best is None and not self._is_saved():
            self._schedule.policy.ends = True
            self._save(hook)

    def end_epoch(self) -> None:
        """Reads Keras's part of a checkpoint that is due at the end of the epoch. Call it in `on_epoch_end`.

        The file contains the weights at this place in the list of callbacks, as with `ModelCheckpoint`. A resume restores the
        state after all callbacks.
        """
        self._is_epoch_due = self._schedule.policy.is_due_after_epoch()
        self._keras_part = self._saver.plan().read_keras_part() if self._is_epoch_due else None

    def save_epoch(self) -> None:
        """Saves if a checkpoint is due at the end of the epoch. Call it after all callbacks ended the epoch."""
        if self.epoch.states:
            self.epoch.restore_metrics()
        if self._is_epoch_due and not (self.epoch.states and self._is_saved()):
            self._save("on_epoch_end")
        self._keras_part = None

    def stop_in_epoch(self, batches_per_epoch: int | None) -> None:
        """Saves the epoch as unfinished if a callback stops training after this batch and batches are left.

        Args:
            batches_per_epoch: the batches of an epoch; None if unknown.
        """
        if batches_per_epoch is None or self._counters.read().batches_in_epoch < batches_per_epoch:
            self.epoch.stop(self._callbacks)
            if not self._template.metrics:  # metrics are logged at the end of the epoch
                self.save_last("on_all_callbacks_ended_batch")

    def finish(self) -> None:
        """Waits for the save in flight and frees the memory of snapshots.

        Raises:
            CheckpointWriteError: if the save fails.
        """
        self._schedule.finish()
        self._saver.free_memory()

    def _save(self, hook: str) -> None:
        """Saves, unless the name needs a metric that is not logged yet, or the state is not the best.

        Args:
            hook: the hook of the callback that saves. A resume sets the states of callbacks in the same hook.

        Raises:
            CheckpointWriteError: if this checkpoint is written synchronously and fails, or an earlier one has failed.
        """
        metrics, policy = self._logged.newest(), self._schedule.policy
        if self._template.missing(metrics):
            policy.postpone()
            return
        if self._is_best and not self._is_best(metrics):
            return
        if hook == "on_train_batch_end":  # else every callback has seen the end of the batch
            callback_state.announce_save(self._callbacks, self._logged.last)
        began = policy.clock()
        self._saver.make_room()
        states = self.epoch.states or callback_state.gather(self._callbacks, hook)
        snapshot = state.take(self._model, self._saver.plan(), states, self._logged.last, metrics, self._keras_part)
        place = self._data.place(snapshot.counts)
        snapshot.header["data"] = place and place.to_json()
        snapshot.header["template"] = self._template.last_part
        policy.saved(snapshot.counts.batch)
        self.newest = self._template.format(snapshot.counts, metrics)
        if ranks().is_chief:
            self._saver.submit(snapshot, self.newest)
        self._schedule.note_blocked(policy.clock() - began)

    def _is_saved(self):
        return not self._counters.reached(self._schedule.policy.saved_batch + 1)
