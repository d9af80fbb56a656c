"""Trains, and sends a signal to its process group, in which another process reads its output.

python tests/programs/signalled_pipeline.py plain|recipe SIGNAL DIRECTORY
"""

import os
import signal
import sys

from small import BATCH, BATCHES, Do, arrays, small_model

from callbacks import GlobalStepCheckpoint, RunRecord, catch_signals, preemption
from recipes import mnist
from recipes.common.run import callbacks, run


def send():
    os.killpg(0, signal.Signals[SIGNAL])


def train_plainly():
    """Sends the signal after the last batch of an epoch, when the progress bar writes before the next batch begins."""
    catch_signals()
    checkpoint = GlobalStepCheckpoint(DIRECTORY + "/checkpoints/b{batch}.weights.h5", save_freq=1000)
    small_model().fit(
        *arrays(), batch_size=BATCH, epochs=2, verbose=1, callbacks=[RunRecord(DIRECTORY), Do(BATCHES, send), checkpoint]
    )


class Signals(callbacks.RunSummary):
    """The last callback of the recipe, which sends the signal."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            send()


if __name__ == "__main__":
    WHAT, SIGNAL, DIRECTORY = sys.argv[1:]
    preemption.READER_WAIT = 60_000  # whatever the speed of the machine
    callbacks.RunSummary = Signals  # type: ignore[misc]
    train_plainly() if WHAT == "plain" else run(
        lambda: mnist.main(["--model", "mlp", "--save-freq", "1000", "--workdir", DIRECTORY])
    )
