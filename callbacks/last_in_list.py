"""A callback that runs after all others of a `fit`."""

from typing import Any

import keras


class LastInList(keras.callbacks.Callback):
    """Calls a listener after all callbacks of a `fit` have run a hook.

    `CallbackList` iterates over a live list, so a callback appended in `on_train_begin` runs last in every hook.

    Args:
        listener: called after the hooks of every callback: `on_all_callbacks_began()`, `on_all_callbacks_began_epoch()`,
            `on_all_callbacks_ended_batch(batch)`, `on_all_callbacks_ended_epoch(epoch)`.
    """

    def __init__(self, listener: Any):
        super().__init__()
        self._listener = listener

    def join(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Appends itself to the callbacks. Call it in `on_train_begin`."""
        self.leave(callbacks)
        callbacks.append(self)

    def leave(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Removes itself from the callbacks."""
        if self in callbacks:
            callbacks.remove(self)

    def on_train_begin(self, logs=None):
        self._listener.on_all_callbacks_began()

    def on_epoch_begin(self, epoch, logs=None):
        self._listener.on_all_callbacks_began_epoch()

    def on_train_batch_end(self, batch, logs=None):
        self._listener.on_all_callbacks_ended_batch(batch)

    def on_epoch_end(self, epoch, logs=None):
        self._listener.on_all_callbacks_ended_epoch(epoch)
