"""A run that begins with the weights of another one."""

import keras

from callbacks import GlobalStepCheckpoint
from callbacks.restoring import restore_weights


class InitialWeights(keras.callbacks.Callback):
    """Gives the model the weights of another run's checkpoint, where no checkpoint of its own was restored.

    Args:
        path: a checkpoint, or a directory or template of checkpoints; None for weights of the recipe's own.
        checkpoint: the run's checkpoint callback; it has to stand before this one in the list.
    """

    def __init__(self, path: str | None, checkpoint: GlobalStepCheckpoint):
        super().__init__()
        self._path, self._checkpoint = path, checkpoint

    def on_train_begin(self, logs=None):
        if self._path is not None and self._checkpoint.resumed_from is None:
            restore_weights(self.model, self._path)
