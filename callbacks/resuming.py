"""Resuming a training: finds the checkpoint, restores everything before the first batch, and says what will not be resumed."""

import os
import warnings
from collections.abc import Iterable

import keras

from callbacks import callback_state, state
from callbacks.callback_state import CallbackStates
from callbacks.counters import counters_of
from callbacks.data_position import data_position_of
from callbacks.errors import InputError
from callbacks.fit_hooks import fit_hooks_of
from callbacks.keras_private import can_build_symbolically, set_initial_epoch
from callbacks.learning_rates import choose_rates
from callbacks.model_match import NotBuilt
from callbacks.ranks import ranks
from callbacks.restored_variables import RestoredVariables
from callbacks.restoring import Checkpoint, find_on_chief, named_checkpoint, own_checkpoints, search
from callbacks.resumed_epoch import resumed_epoch_of
from callbacks.state_tree import StateTree
from callbacks.template import Template
from callbacks.trainable_flags import trainable_flags_of


def find_checkpoint(template: Template, resume: bool | str | os.PathLike) -> Checkpoint | None:
    """Returns the checkpoint that a training resumes from, the same on every rank.

    Args:
        template: the names of the run's checkpoints.
        resume: True for the newest of them that verifies, False for none, or the path of one.

    Raises:
        InputError: if there is no intact checkpoint at that path, or all have NaN or infinite values.
    """
    if resume is False:
        return None
    if resume is True:
        return find_on_chief(lambda: _last_good(template))
    return find_on_chief(lambda: named_checkpoint(os.fspath(resume)))


def _last_good(template: Template) -> Checkpoint | None:
    """The newest finite checkpoint; what newer ones have come to is said, and how to get past it."""
    found = search(template.text)
    if not found.not_finite:
        return found.checkpoint
    if found.checkpoint is None:
        raise InputError(
            f"No checkpoint to resume from: those of {template.text} hold NaN or infinite values, from batch "
            f"{found.not_finite[-1][1]} on. Begin again in another directory, with a lower learning rate or other data."
        )
    first, last = found.checkpoint.batch + 1, found.not_finite[-1][1]
    warnings.warn(
        f"{found.passed_over} Training resumes from batch {found.checkpoint.batch}. The same batches in the same order lead "
        f"to the same values again: leave out batches {first} to {last} (in recipes: --skip-batches {first}:{last}), "
        "or lower the learning rate.",
        stacklevel=2,
    )
    return found.checkpoint


def warn_of_later_checkpoints(template: Template, begins_at: int) -> None:
    """Warns if the directory has checkpoints of another run that came further; to be called on the chief."""
    if not template.counters:
        return
    newest = next(own_checkpoints(template), None)
    if newest and newest[1].batch > begins_at:
        warnings.warn(
            f"{newest[0]} is of another run, which came to batch {newest[1].batch}; this one begins at {begins_at}. "
            "It replaces files of equal names and deletes none of the others. Use another directory, or resume=True.",
            stacklevel=3,
        )


class Resumption:
    """Restores a model from a checkpoint, and then the callbacks of the `fit` that resumes.

    Args:
        model: a compiled model, in `on_train_begin` of the `fit`.
        checkpoint: a checkpoint that was verified.
        planned_epochs: the `epochs` of the `fit`; None if unknown.
        compiled_rates: the learning rates that the model was compiled with.

    Attributes:
        logs: the last logs that Keras reported before the checkpoint.
        initial_epoch: the epoch, 0-based, with which training goes on.

    Raises:
        InputError: if the checkpoint is of another model. Nothing is changed then.
    """

    def __init__(self, model: keras.Model, checkpoint: Checkpoint, planned_epochs: int | None, compiled_rates: dict[str, float]):
        stored = state.read_state(checkpoint.path)
        self._compiled_rates = compiled_rates
        self._model, self._counters, self._counts = model, counters_of(model), stored.counts
        self._earlier, self._flags = self._counters.read(), stored.header.get("trainable", {})
        self._restored: RestoredVariables | None = None
        self._lacking: state.StoredState | None = None  # what is to be restored to variables that are yet to be made
        self._restore_variables(stored)
        stored.resume_epoch(model)
        self.logs = stored.header["logs"]
        self._states: CallbackStates | None = stored.callback_states
        self.initial_epoch = self._counters.epoch_to_begin
        if self._states.has_stopped and planned_epochs is not None:
            self.initial_epoch = planned_epochs
        set_initial_epoch(model, self.initial_epoch)
        if ranks().is_chief and planned_epochs and self.initial_epoch >= planned_epochs:
            why = "a callback has ended the training" if self._states.has_stopped else f"epochs is {planned_epochs}"
            where = f"{'at the end of' if self._counts.epoch_ended else 'in'} epoch {self._counts.epoch}"
            print(f"Nothing left to train: {checkpoint.path} stands {where}, and {why}.", flush=True)

    def set_states(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        """Sets the states of callbacks, and the variables once more, which callbacks may have changed since.

        To be called after every callback's `on_train_begin`, in which they forget their state. What they do to the model there,
        an earlier process has done.
        """
        if self._lacking:
            self._restore_what_lacked()
        elif self._restored:
            self._restored.put_back()
            trainable_flags_of(self._model).restore(self._flags)
        if self._states:
            callback_state.give_back(callbacks, self._states)
        if self._counts.epoch_ended:
            self._restored = None  # what they do next to the model is new

    def set_states_again(self, callbacks: Iterable[keras.callbacks.Callback], hook: str, batch: int = 0) -> None:
        """Sets states and variables once more, in the hook in which they were saved.

        In the middle of an epoch Keras calls the hooks of the batches that were trained on already. So callbacks would see
        these batches twice. The callbacks that stand behind the one that saves had not seen the last hook: they see it now.

        Args:
            callbacks: all callbacks of the `fit`.
            hook: the hook that the callback that saves is in.
            batch: the hook's argument.
        """
        if self._states is None:
            return
        if self._counts.epoch_ended or self._counters.batch_bound > self._counts.batch:
            self._states = self._restored = None  # training has gone on
        elif hook == self._states.hook and self._is_place_of_save(hook, batch):
            self.set_states(callbacks)
            self._restored = None

    def _is_place_of_save(self, hook, batch):
        done, execution = self._counts.batches_in_epoch, self._model.steps_per_execution
        if hook in ("on_train_batch_end", "on_all_callbacks_ended_batch"):  # of the last batches that are skipped
            return batch + execution >= done
        if hook == "on_train_batch_begin":  # of the first batches that are trained on
            return batch + execution > done
        return True

    def _restore_variables(self, stored: state.StoredState) -> None:
        """Restores the variables; where some are lacking, once the other callbacks have begun, or just before the first batch."""
        try:
            self._assign(stored)
        except NotBuilt:
            self._lacking = stored

    def _restore_what_lacked(self, is_last_try: bool = False) -> None:
        """Restores the variables, or leaves it to the first batch, which may make them; or refuses, and leaves no trace."""
        assert self._lacking is not None
        try:
            self._assign(self._lacking)
        except InputError as error:
            if isinstance(error, NotBuilt) and not is_last_try and self._first_batch_makes_variables():
                fit_hooks_of(self._model).before_first_batch(lambda: self._restore_what_lacked(is_last_try=True), lacks=True)
                return
            resumed_epoch_of(self._model).resume(self._earlier, {}, lambda: None)
            data_position_of(self._model).resume(None, self._earlier)
            set_initial_epoch(self._model, None)
            raise
        self._lacking = None

    def _first_batch_makes_variables(self) -> bool:
        return not (StateTree(self._model).is_built and can_build_symbolically(self._model))

    def _assign(self, stored: state.StoredState) -> None:
        stored.assign_to(self._model)
        choose_rates(self._model, self._compiled_rates, stored.header, stored.path)
        # An optimizer that a callback makes later has the checkpoint's rate: nobody has chosen another one for it.
        self._restored = RestoredVariables(self._model, lambda: stored.assign_to(self._model))
