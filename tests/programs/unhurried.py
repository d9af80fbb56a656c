"""Trains recipes.mnist, and waits for 100 ms after each batch until there is a file `hurry` in the working directory.

A run that a test interrupts needs few batches, however long the interruption takes, and little CPU.

python tests/programs/unhurried.py FLAG...
"""

import os
import sys
import time

from recipes import mnist
from recipes.common.run import callbacks, run


class Waits(callbacks.RunSummary):
    """The last callback of the recipe."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if not os.path.exists("hurry"):
            time.sleep(0.1)


if __name__ == "__main__":
    callbacks.RunSummary = Waits  # type: ignore[misc]
    run(lambda: mnist.main(sys.argv[1:]))
