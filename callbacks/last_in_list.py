"""A callback that comes after all others of a `fit`."""

from collections.abc import Callable

import keras


class LastInList(keras.callbacks.Callback):
    """Calls back when all callbacks of a `fit` are through with a hook, whatever the caller's own place in their list.

    `CallbackList` iterates over its list itself, so what is appended when training begins comes last from then on.

    Args:
        began: called after every callback's `on_train_begin`.
        ended_epoch: called with the epoch, 0-based, after every callback's `on_epoch_end`.
    """

    def __init__(self, began: Callable[[], None], ended_epoch: Callable[[int], None]):
        super().__init__()
        self._began, self._ended_epoch = began, ended_epoch

    def join(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Becomes the last of the callbacks; to be called in `on_train_begin`."""
        self.leave(callbacks)
        callbacks.append(self)

    def leave(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Is no longer one of the callbacks."""
        if self in callbacks:
            callbacks.remove(self)

    def on_train_begin(self, logs=None):
        self._began()

    def on_epoch_end(self, epoch, logs=None):
        self._ended_epoch(epoch)
