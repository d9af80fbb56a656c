"""Trains with a fake clock: a batch takes 1 s, the callbacks before it 0.25 s, and a validation 5 s.

python tests/programs/clocked_run.py DIRECTORY NOW KILL_AT

NOW is when the process was started. After batch KILL_AT of this process, the program prints the time and kills itself; if training
ends before, it prints the time of the last batch.
"""

import os
import pathlib
import signal
import sys

import keras
from small import arrays, fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, start_up
from callbacks.curves.step_statistics import StepStatistics


class World(keras.callbacks.Callback):
    """Lets time pass, and kills the process. It is the first callback in the list."""

    def __init__(self, now, kill_at):
        super().__init__()
        self.now, self.kill_at, self.batches, self.last = now, kill_at, 0, now

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 0.25

    def on_train_batch_end(self, batch, logs=None):
        self.now += 1.0
        self.batches += 1
        self.last = self.now
        if self.batches == self.kill_at:
            print(self.now, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def on_test_begin(self, logs=None):
        self.now += 5.0


def main(directory, now, kill_at):
    start_up.began = lambda: now
    world = World(now, kill_at)
    board = GlobalStepTensorBoard(directory / "events", update_freq=10, write_graph=False)
    board._time = lambda: world.now
    board._statistics = StepStatistics(clock=board._time)
    checkpoint = GlobalStepCheckpoint(directory / "{batch}.weights.h5", save_freq=4, resume=True, background=False)
    fit(small_model(), world, board, checkpoint, epochs=4, validation_data=arrays(2))
    print(world.last)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
