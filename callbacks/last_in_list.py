"""A callback that runs after all others of a `fit`."""

from collections.abc import Callable

import keras


class LastInList(keras.callbacks.Callback):
    """Calls functions after all callbacks of a `fit` have run a hook.

    `CallbackList` iterates over a live list, so a callback appended in `on_train_begin` runs last in every hook.

    Args:
        began: called after every callback's `on_train_begin`.
        ended_epoch: called with the epoch, 0-based, after every callback's `on_epoch_end`.
    """

    def __init__(self, began: Callable[[], None], ended_epoch: Callable[[int], None]):
        super().__init__()
        self._began, self._ended_epoch = began, ended_epoch

    def join(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Appends itself to the callbacks. Call it in `on_train_begin`."""
        self.leave(callbacks)
        callbacks.append(self)

    def leave(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Removes itself from the callbacks."""
        if self in callbacks:
            callbacks.remove(self)

    def on_train_begin(self, logs=None):
        self._began()

    def on_epoch_end(self, epoch, logs=None):
        self._ended_epoch(epoch)
