"""Trains recipes.mnist, and fails at batch 30.

python tests/programs/fails_at_30.py FLAG...
"""

import sys
from typing import Any

import keras

from callbacks import counters_of
from recipes import mnist
from recipes.common.run import callbacks


class Fails(keras.callbacks.Callback):
    """Takes the place of the summary."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__()

    def on_train_batch_end(self, batch, logs=None):
        assert counters_of(self.model).read().batch < 30


if __name__ == "__main__":
    callbacks.RunSummary = Fails  # type: ignore[misc]
    mnist.main(sys.argv[1:])
