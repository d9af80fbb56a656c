"""Runs a recipe that receives a real signal at an exact point.

python tests/preempted_run.py PLACE SIGNAL RANK FLAGS...

PLACE is `begin`, when training begins; `train:N`, after batch N of the run; or `test:E`, after the first batch of the validation
of epoch E. SIGNAL is sent three times, or once if it is SIGINT. RANK: the only rank that gets it.
"""

import os
import signal
import sys

from recipes import mnist
from recipes.common.run import callbacks, run


class Signals(callbacks.RunSummary):
    """The last callback of the recipe, which sends the signal."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._at("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._at(f"train:{self._epoch * self._batches.num_batches + batch + 1}")

    def on_test_batch_end(self, batch, logs=None):
        if batch == 0:
            self._at(f"test:{self._epoch + 1}")

    def _at(self, place):
        if place == PLACE and os.environ.get("RANK", RANK) == RANK:
            for _ in range(1 if SIGNAL == "SIGINT" else 3):
                os.kill(os.getpid(), signal.Signals[SIGNAL])


if __name__ == "__main__":
    PLACE, SIGNAL, RANK, *flags = sys.argv[1:]
    callbacks.RunSummary = Signals  # type: ignore[misc]
    run(lambda: mnist.main(flags))
