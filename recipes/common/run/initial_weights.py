"""Starts a run with the weights of another run."""

import keras

from callbacks import GlobalStepCheckpoint
from callbacks.resuming.restoring import restore_weights


class InitialWeights(keras.callbacks.Callback):
    """Restores the weights of another run's checkpoint, unless the run resumes from its own checkpoint.

    Args:
        path: a checkpoint, or a directory or template of checkpoints; None to keep the initial weights.
        checkpoint: the checkpoint callback of the run; it must come before this callback in the list.
    """

    def __init__(self, path: str | None, checkpoint: GlobalStepCheckpoint):
        super().__init__()
        self._path, self._checkpoint = path, checkpoint

    def on_train_begin(self, logs=None):
        if self._path is not None and self._checkpoint.resumed_from is None:
            restore_weights(self.model, self._path)
