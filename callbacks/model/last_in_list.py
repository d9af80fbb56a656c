"""A callback that runs after all others of a `fit`."""

from typing import Any

import keras


class LastInList(keras.callbacks.Callback):
    """Calls a listener after all callbacks of a `fit` have run a hook.

    `CallbackList` iterates over a live list, so a callback appended in `on_train_begin` runs last in every hook.

    Args:
        listener: called after the hooks of every callback: `on_all_callbacks_began()`, `on_all_callbacks_began_epoch()`,
            `on_all_callbacks_ended_batch(batch)`, `on_all_callbacks_ended_epoch(epoch)`.

    Where there is no `CallbackList`, the listener calls `run_without_list` instead.
    """

    def __init__(self, listener: Any):
        super().__init__()
        self._listener = listener
        self._is_in_list = False

    def join(self, callbacks: list[keras.callbacks.Callback] | None) -> None:
        """Appends itself to the callbacks. Call it in `on_train_begin`.

        Args:
            callbacks: the list that `CallbackList` iterates over; None if there is no `CallbackList`.
        """
        self._is_in_list = callbacks is not None
        if callbacks is not None:
            self.leave(callbacks)
            callbacks.append(self)

    def run_without_list(self, hook: str, *arguments: int) -> None:
        """Runs a hook if no `CallbackList` runs it. The listener calls this last in the same hook.

        Args:
            hook: the name of the hook.
            arguments: the arguments of the hook.
        """
        if not self._is_in_list:
            getattr(self, hook)(*arguments)

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
