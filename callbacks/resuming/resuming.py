"""Resumes a training: finds the checkpoint and restores everything before the first batch."""

import os
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from callbacks.counting.counters import counters_of
from callbacks.counting.data_position import data_position_of
from callbacks.counting.resumed_epoch import resumed_epoch_of
from callbacks.counting.save_costs import save_costs_of
from callbacks.counts import Counts
from callbacks.disk.template import Template
from callbacks.errors import CheckpointReadError, InputError
from callbacks.model import callback_state
from callbacks.model.callback_state import CallbackStates
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.model.keras_private import set_initial_epoch
from callbacks.model.trainable_flags import trainable_flags_of
from callbacks.ranks import ranks
from callbacks.resuming import phases
from callbacks.resuming.restored_variables import RestoredVariables
from callbacks.resuming.restoring import Checkpoint, find_on_chief, named_checkpoint, own_checkpoints, search
from callbacks.state import state
from callbacks.state.learning_rates import begin_fit as begin_rates
from callbacks.state.learning_rates import choose_rates
from callbacks.state.model_match import NotBuilt


def find_checkpoint(template: Template, resume: bool | str | os.PathLike) -> Checkpoint | None:
    """Returns the checkpoint to resume from, the same on every rank; None if there is none.

    Args:
        template: the names of the run's checkpoints.
        resume: True for the newest finite one that verifies, False for none, or the path of one.

    Raises:
        InputError: if there is no intact checkpoint at the path, or all checkpoints have NaN or infinite values.
    """
    if resume is False:
        return None
    if resume is True:
        return find_on_chief(lambda: _newest_finite(template))
    return find_on_chief(lambda: named_checkpoint(os.fspath(resume)))


def _newest_finite(template: Template) -> Checkpoint | None:
    """Returns the newest finite checkpoint, and warns of newer ones that are not finite."""
    found = search(template.text)
    if not found.not_finite:
        return found.checkpoint
    if found.checkpoint is None:
        raise InputError(
            f"No checkpoint to resume from: those of {template.text} contain NaN or infinite values, from batch "
            f"{found.not_finite[-1][1]} on. Begin again in another directory, with a lower learning rate or other data."
        )
    first, last = found.checkpoint.batch + 1, found.not_finite[-1][1]
    warnings.warn(
        f"{found.skipped} Training resumes from batch {found.checkpoint.batch}. The same batches in the same order lead "
        f"to the same values again: skip batches {first} to {last} (in recipes: --skip-batches {first}:{last}), "
        "or lower the learning rate.",
        stacklevel=2,
    )
    return found.checkpoint


def _warn_of_later_checkpoints(template: Template, resume: bool | str | os.PathLike, begins_at: int) -> None:
    """Warns on the chief if the directory has later checkpoints of another run, unless the newest one was resumed from."""
    if resume is True or not (template.counters and ranks().is_chief):
        return
    newest = next(own_checkpoints(template), None)
    if newest and newest[1].batch > begins_at:
        warnings.warn(
            f"{newest[0]} is of another run, which reached batch {newest[1].batch}. This run begins at batch {begins_at}, replaces "
            "files of equal names and deletes no others. Use another directory, or resume=True.",
            stacklevel=3,
        )


class Resumption:
    """Restores a model from the checkpoint that training resumes from, and then the callbacks. Without one it does nothing.

    Args:
        model: the model, in `on_train_begin` of the training.
        template: the names of the run's checkpoints.
        resume: as in `GlobalStepCheckpoint`.
        planned_epochs: the `epochs` of the `fit`; None if unknown.
        planned_batches: the batches of an epoch; None if unknown.
        first_epoch: the `initial_epoch` of the `fit`.

    Attributes:
        checkpoint: the checkpoint, which has been verified; None if there is none, or the model has its state already.
        logs: the last logs that Keras reported before it was saved.
        metrics: the newest value of each metric then.
        initial_epoch: the 0-based epoch in which training resumes.

    Raises:
        InputError: if the checkpoint is of another model. The model is not changed then.
    """

    def __init__(
        self,
        model: keras.Model,
        template: Template,
        resume: bool | str | os.PathLike,
        planned_epochs: int | None,
        planned_batches: int | None,
        first_epoch: int = 0,
    ):
        self._model, self._counters, self._counts = model, counters_of(model), Counts()
        self._planned_epochs, self._first_epoch = planned_epochs, first_epoch
        self._states: CallbackStates | None = None
        self._earlier, self._flags, self._is_finished = Counts(), dict[str, bool](), False
        self._is_of_later_fit = False  # whether the checkpoint was saved after the user had frozen other layers
        self._restored: RestoredVariables | None = None
        self._lacking: state.StoredState | None = None  # to restore when the model has all its variables
        self._obstacle: NotBuilt | None = None  # why a finished run is not restored
        self.logs: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.initial_epoch = 0
        found = find_checkpoint(template, resume)
        self._compiled_rates = begin_rates(model)
        self.checkpoint = self._resume(found) if found else None
        if self.checkpoint and planned_epochs and ranks().is_chief:
            self._say_if_finished(self.checkpoint.path, planned_epochs, planned_batches)
        _warn_of_later_checkpoints(template, resume, self._counters.read().batch)

    def _resume(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Restores the checkpoint and returns it; does nothing and returns None if the model has its state already."""
        stored = state.read_state(checkpoint.path)
        if phases.begins_phase(self._model, checkpoint, stored, self._planned_epochs):
            self.initial_epoch = phases.first_epoch(self._model, self._first_epoch)
            set_initial_epoch(self._model, self.initial_epoch)
            return None
        self._earlier, self._flags = self._counters.read(), stored.header.get("trainable", {})
        self._restore_variables(stored)
        stored.resume_epoch(self._model)
        resumed_epoch_of(self._model).is_repeating = True
        save_costs_of(self._model).newest = (checkpoint.batch, checkpoint.path)
        self.logs, self.metrics, self._counts = stored.header["logs"], checkpoint.metrics, stored.counts
        self._states = stored.callback_states
        self.initial_epoch = self._counters.epoch_to_begin
        if self._states.has_stopped and self._planned_epochs is not None:
            self.initial_epoch = self._planned_epochs
        set_initial_epoch(self._model, self.initial_epoch)
        self._is_finished = self._planned_epochs is not None and 0 < self._planned_epochs <= self.initial_epoch
        self._compare_frozen(stored)
        return checkpoint

    def _compare_frozen(self, stored: state.StoredState) -> None:
        """Notes whether the checkpoint is of a later `fit` of the program, and warns if this one continues it."""
        if not phases.has_frozen_others(self._model, stored):
            return
        self._is_of_later_fit = self._is_finished
        if not self._is_finished and not self._earlier.batch and ranks().is_chief:
            warnings.warn(
                f"{stored.path} was saved by a fit with other frozen layers, perhaps a later one of this program. This fit "
                "continues with the layers and the optimizer of the checkpoint.",
                stacklevel=2,
            )

    def _say_if_finished(self, path: str, planned_epochs: int, planned_batches: int | None) -> None:
        """Prints that no batch is left to train on, if that is so. The end of the last epoch may be left, with its validation."""
        counts, has_stopped = self._counts, self._states is not None and self._states.has_stopped
        ends_epoch = planned_batches is not None and counts.batches_in_epoch >= planned_batches
        if self._is_finished or (ends_epoch and counts.epoch >= planned_epochs):
            why = "a callback has ended the training" if has_stopped else f"epochs is {planned_epochs}"
            where = "at the end of" if counts.epoch_ended else "after the last batch of" if ends_epoch else "in"
            print(f"Nothing left to train: {path} was saved {where} epoch {counts.epoch}, and {why}.", flush=True)

    def end(self, newest: str | None, batch: int) -> None:
        """Ends the training. Call it in `on_train_end`.

        Args:
            newest: the path of the checkpoint that was saved last or resumed from; None if there is none.
            batch: the batch of that checkpoint.
        """
        self.forget()
        if self._is_of_later_fit:
            trainable_flags_of(self._model).put_back({})  # the program changes them again for that fit
        phases.end_fit(self._model, self._planned_epochs, newest if self._obstacle is None else None, batch)
        data_position_of(self._model).end()

    def forget(self) -> None:
        """Frees the restored state."""
        self._states = None
        self._stop_repeating()
        set_initial_epoch(self._model, None)  # if no epoch has begun

    def set_states(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        """Restores the callback states, and again the variables, which callbacks may have changed since.

        Call it after every callback's `on_train_begin`, in which callbacks reset their state. Their changes of the model there are
        undone, since an earlier process has made them already.
        """
        if self._lacking or self._restored:
            trainable_flags_of(self._model).put_back(self._flags)
        if self._restored:
            self._restored.put_back()
        self._restore_late()
        if self._states and self.checkpoint:
            callback_state.give_back(callbacks, self._states, self.checkpoint.path)
        if self._obstacle:
            warnings.warn(
                f"The model is not restored, since no batch is left that could create its missing variables. {self._obstacle}",
                stacklevel=2,
            )
        if self._counts.epoch_ended:
            self._stop_repeating()

    def set_states_again(self, callbacks: Iterable[keras.callbacks.Callback], hook: str, batch: int = 0) -> None:
        """Restores callback states and variables again, in the hook of the save.

        In the middle of an epoch, Keras calls the hooks of batches that are trained on already, so callbacks see these batches
        twice. The restore undoes that. Callbacks after the one that saves had not run the hook of the save, and run it now.

        Args:
            callbacks: all callbacks of the `fit`.
            hook: the current hook of the callback that saves.
            batch: the argument of the hook.
        """
        if self._states is None:
            return
        if self._counts.epoch_ended or self._counters.batch_bound > self._counts.batch:
            self.forget()  # training has continued
        elif hook == self._states.hook and self._is_place_of_save(hook, batch):
            self.set_states(callbacks)
            self._stop_repeating()

    def _stop_repeating(self) -> None:
        """Notes that later changes of the model and later calls of `train_on_batch` are new."""
        self._restored = None
        resumed_epoch_of(self._model).is_repeating = False

    def _is_place_of_save(self, hook, batch):
        done, execution = self._counts.batches_in_epoch, self._model.steps_per_execution
        if hook in ("on_train_batch_end", "on_all_callbacks_ended_batch"):  # in the last skipped execution
            return batch + execution >= done
        if hook == "on_train_batch_begin":  # in the first trained execution
            return batch + execution > done
        return True

    def _restore_variables(self, stored: state.StoredState) -> None:
        """Restores the variables. If the model lacks some, a callback or the first batch may create them: it is restored then."""
        try:
            self._assign(stored)
        except NotBuilt:
            self._lacking = stored

    def _restore_late(self, is_last_try: bool = False) -> None:
        """Restores the variables after all callbacks began, or before the first batch, which may create the missing ones.

        Raises:
            InputError: if variables are still missing, or differ. The counters and the place in the data are reset then, as
                they are after the next one.
            CheckpointReadError: if the disk fails.
        """
        if self._lacking is None:
            return
        try:
            self._assign(self._lacking)
        except (InputError, CheckpointReadError) as error:
            if isinstance(error, NotBuilt) and self._is_finished:
                self._obstacle = error
                return
            if isinstance(error, NotBuilt) and not is_last_try:
                fit_hooks_of(self._model).before_first_batch(lambda: self._restore_late(is_last_try=True), trace=True)
                return
            resumed_epoch_of(self._model).resume(self._earlier, {}, lambda: None)
            data_position_of(self._model).resume(None, self._earlier)
            set_initial_epoch(self._model, None)
            raise
        self._lacking = None

    def _assign(self, stored: state.StoredState) -> None:
        stored.assign_to(self._model)
        choose_rates(self._model, self._compiled_rates, stored.header, stored.path)
        # An optimizer that a callback makes later gets the checkpoint's rate, since the user has chosen no other.
        self._restored = RestoredVariables(self._model, lambda: stored.assign_to(self._model))
