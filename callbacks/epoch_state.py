"""What an epoch was after its last batch, before validation resets the metrics and callbacks see its end."""

from collections.abc import Callable, Sequence

import keras

from callbacks import callback_state
from callbacks.callback_state import CallbackStates
from callbacks.metric_results import noted_metrics


class EpochState:
    """The state of the epoch in progress, for a checkpoint from which the same epoch is to be resumed.

    Attributes:
        states: the states of callbacks, if one of them has ended training in mid-epoch; else None.
        restore_metrics: sets the running metrics that training had, once validation has begun.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """To be called when an epoch begins."""
        self.states: CallbackStates | None = None
        self.restore_metrics: Callable[[], None] = lambda: None

    def begin_validation(self, model: keras.Model) -> None:
        """To be called before a validation."""
        self.restore_metrics = noted_metrics(model)

    def stop(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Notes that no more batches of the epoch come, though some are left."""
        self.states = callback_state.gather(callbacks, "on_all_callbacks_ended_batch")
