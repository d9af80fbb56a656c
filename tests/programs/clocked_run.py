"""Trains with a fake clock: a batch takes 1 s, the callbacks at its end 0.25 s, and a validation 5 s.

python tests/programs/clocked_run.py DIRECTORY NOW KILL_AT

NOW is the time at the start. After batch KILL_AT of this process, the program prints the time and kills itself; if training
ends before, it prints the time of the last batch.
"""

import os
import pathlib
import signal
import sys

import keras
from small import arrays, fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard
from callbacks.curves.step_statistics import StepStatistics


class World(keras.callbacks.Callback):
    """Lets time pass, and kills the process."""

    def __init__(self, now, kill_at):
        super().__init__()
        self.now, self.kill_at, self.batches, self.last = now, kill_at, 0, now

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 1.0

    def on_train_batch_end(self, batch, logs=None):
        self.now += 0.25
        self.batches += 1
        self.last = self.now
        if self.batches == self.kill_at:
            print(self.now, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def on_test_begin(self, logs=None):
        self.now += 5.0


def main(directory, now, kill_at):
    world = World(now, kill_at)
    board = GlobalStepTensorBoard(directory / "events", update_freq=10, write_graph=False)
    board._time = lambda: world.now
    board._statistics = StepStatistics(clock=board._time)
    checkpoint = GlobalStepCheckpoint(directory / "{batch}.weights.h5", save_freq=4, resume=True, background=False)
    fit(small_model(), board, world, checkpoint, epochs=4, validation_data=arrays(2))
    print(world.last)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
