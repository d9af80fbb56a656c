"""What a checkpoint needs of a training loop of the user's own, and what is said where the loop does not give it."""

import warnings

import keras

from callbacks.counters import counters_of
from callbacks.errors import InputError
from callbacks.fit_hooks import fit_hooks_of
from callbacks.resumed_epoch import resumed_epoch_of
from callbacks.state_tree import StateTree
from callbacks.template import Template


class OwnLoopChecks:
    """Looks after one loop; to be made in `on_train_begin`, when a checkpoint is restored.

    Args:
        model: the model in training.
        template: the names of the checkpoints.
        initial_epoch: the epoch, 0-based, with which training goes on.
    """

    def __init__(self, model: keras.Model, template: Template, initial_epoch: int):
        self._model, self._template, self._initial_epoch = model, template, initial_epoch
        self._counters = counters_of(model)
        self._has_begun_epoch = self._has_begun_batch = False
        self._repeats = 0  # batches that a resumed checkpoint holds and the loop does not leave out
        if not StateTree(model).optimizers:
            warnings.warn(
                "The model has no optimizer, so checkpoints hold none and a resume begins with a new one. Assign it before "
                "on_train_begin: model.optimizer = optimizer.",
                stacklevel=4,
            )

    def begin_epoch(self, epoch: int) -> None:
        """To be called in `on_epoch_begin`, before the counters know of it."""
        if not self._has_begun_epoch and epoch < self._initial_epoch:
            warnings.warn(
                f"Training goes on in epoch {self._initial_epoch + 1}, and this loop begins with epoch {epoch + 1}: what lies "
                "between is trained on twice. Begin with the initial_epoch of the callback, which is known after on_train_begin.",
                stacklevel=4,
            )
        self._has_begun_epoch = True

    def begin_batch(self, batch: int) -> None:
        """To be called in `on_train_batch_begin`."""
        if not self._has_begun_batch:
            self._has_begun_batch = True
            resumed_epoch_of(self._model).begins_at = batch
            self._repeats = max(self._counters.batches_done - batch, 0)
        fit_hooks_of(self._model).begin_batch_of_own_loop()

    def end_unseen_batch(self) -> None:
        """To be called in `on_train_batch_end` of a batch that no train step of the model has counted.

        Raises:
            InputError: if the checkpoint could not be restored before the first batch, or a name needs what nobody can count.
        """
        fit_hooks_of(self._model).end_batch_of_own_loop()
        if "samples" in self._template.counters:
            raise InputError(
                f"{{samples}} in {self._template.text!r} cannot be counted: this loop's step is its own. "
                "Use {batch}, or train_on_batch."
            )
        if self._repeats:
            warnings.warn(
                f"The first {self._repeats} batches of this epoch are trained on twice: the checkpoint holds them, and this loop's "
                "step is its own. Leave them out: if batch < checkpoint.batches_done: continue.",
                stacklevel=4,
            )
            self._repeats = 0
