"""Checks the loop that trains: what a checkpoint needs, and what a custom training loop may lack.

`FitChecks` and `CustomLoopChecks` have the same methods. `GlobalStepCheckpoint` makes one of them when training begins.
"""

import warnings
from collections.abc import Callable

import keras

from callbacks.counting.counters import counters_of
from callbacks.counting.resumed_epoch import resumed_epoch_of
from callbacks.disk.template import Template
from callbacks.errors import InputError
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.model.keras_private import set_initial_epoch
from callbacks.model.state_tree import StateTree


class FitChecks:
    """Checks before the first batch of a `fit`. Keras itself keeps the order of epochs and batches.

    Args:
        model: the model in training.
        check_metrics: checks the metrics that the checkpoints need; None if they need none.
    """

    is_custom = False

    def __init__(self, model: keras.Model, check_metrics: Callable[[], None] | None):
        self._model = model
        if check_metrics:
            fit_hooks_of(model).before_first_batch(check_metrics)

    def begin_epoch(self, epoch: int) -> None:
        """Makes the next `fit` of the model begin with its own epoch: this one has begun, and a callback may call `fit`."""
        set_initial_epoch(self._model, None)

    def begin_batch(self, batch: int) -> None:
        """Does nothing, since `fit` begins with the first batch of an epoch."""

    def end_unseen_batch(self) -> None:
        """Does nothing, since every batch of `fit` goes through the train step of the model."""


class CustomLoopChecks:
    """Checks a custom training loop. Make it in `on_train_begin`, after a resumed checkpoint is restored.

    Args:
        model: the model in training.
        template: the names of the checkpoints.
        initial_epoch: the 0-based epoch in which training resumes.
    """

    is_custom = True

    def __init__(self, model: keras.Model, template: Template, initial_epoch: int):
        self._model, self._template, self._initial_epoch = model, template, initial_epoch
        self._counters = counters_of(model)
        self._has_begun_epoch = self._has_begun_batch = False
        self._repeats = 0  # batches that the loop trains on though the checkpoint contains them
        if not StateTree(model).optimizers:
            warnings.warn(
                "The model has no optimizer, so checkpoints contain none and a resume begins with a new one. "
                "Assign it before on_train_begin: model.optimizer = optimizer.",
                stacklevel=4,
            )

    def begin_epoch(self, epoch: int) -> None:
        """Warns if the loop begins with an epoch that is trained on already. Call it before the counters begin the epoch."""
        if not self._has_begun_epoch and epoch < self._initial_epoch:
            warnings.warn(
                f"Training resumes in epoch {self._initial_epoch + 1}, but this loop begins with epoch {epoch + 1}: batches in "
                "between are trained on twice. Begin with checkpoint.initial_epoch, which is set in on_train_begin.",
                stacklevel=4,
            )
        self._has_begun_epoch = True

    def begin_batch(self, batch: int) -> None:
        """Notes at which batch the loop begins. Call it in `on_train_batch_begin`."""
        if not self._has_begun_batch:
            self._has_begun_batch = True
            resumed_epoch_of(self._model).begins_at = batch
            self._repeats = max(self._counters.batches_done - batch, 0)
        fit_hooks_of(self._model).begin_batch_of_custom_loop()

    def end_unseen_batch(self) -> None:
        """Checks a batch that went through no train step of the model. Call it in `on_train_batch_end`.

        Raises:
            InputError: if the checkpoint could not be restored before the first batch, or a name contains `{samples}`.
        """
        fit_hooks_of(self._model).end_batch_of_custom_loop()
        if "samples" in self._template.counters:
            raise InputError(
                f"{{samples}} in {self._template.text!r} cannot be counted in a custom training loop with a step of its own. "
                "Use {batch}, or train_on_batch."
            )
        if self._repeats:
            warnings.warn(
                f"The first {self._repeats} batches of this epoch are trained on twice: the resumed checkpoint contains them "
                "already. Skip them in the loop: if batch < checkpoint.batches_done: continue.",
                stacklevel=4,
            )
            self._repeats = 0
