"""Keeps the state of an epoch after its last batch, before validation resets the metrics and callbacks end the epoch."""

from collections.abc import Callable, Sequence

import keras

from callbacks.counting.metric_results import noted_metrics
from callbacks.model import callback_state
from callbacks.model.callback_state import CallbackStates


class EpochState:
    """The state of the epoch in progress, for a checkpoint that resumes the same epoch.

    Attributes:
        states: the callback states, if a callback has stopped training in the middle of the epoch; else None.
        restore_metrics: restores the running metrics of training after validation has begun.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts an epoch."""
        self.states: CallbackStates | None = None
        self.restore_metrics: Callable[[], None] = lambda: None

    def begin_validation(self, model: keras.Model) -> None:
        """Keeps the running metrics. Call it before a validation."""
        self.restore_metrics = noted_metrics(model)

    def stop(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Keeps the callback states, since training stops though batches of the epoch are left."""
        self.states = callback_state.gather(callbacks, "on_all_callbacks_ended_batch")
