"""A whole training loop that saves 1.2 GB every 10 s, against the loop without saves and with a bare writer of as many bytes.

One `fit` in stretches of 10 s, by turns: without a save, with a bare write at the beginning of it, with a save of ours.
The bare writer is a thread that writes a copy of the state, made long before, to a file and calls fsync: no hold of the
state, no format, no checksum, no rename. What it costs the loop is the cost of these bytes on this machine. Of the process's
CPU time beside it, other processes on the machine take nothing away.
"""

import tempfile
import threading
import time

import keras
import numpy as np

from benchmarks import wide_model
from benchmarks.own_process import in_own_process
from benchmarks.plain_write import write_plainly
from callbacks import GlobalStepCheckpoint

SIZE = "1.2 GB"
SECONDS, ROUNDS = 10, 5
KINDS = ("without saves", "bare writer", "GlobalStepCheckpoint")


class Turns(keras.callbacks.Callback):
    """Cuts training into stretches of as many batches, and starts the bare writer at every third one's beginning.

    Args:
        length: batches of a stretch.
        arrays: what the bare writer writes.
        path: where to.
    """

    def __init__(self, length: int, arrays: list[np.ndarray], path: str):
        super().__init__()
        self._length, self._arrays, self._path = length, arrays, path
        self._trained = 0
        self.marks: list[tuple[float, float]] = []  # ends of stretches: clock, CPU time

    def on_train_batch_end(self, batch, logs=None):
        self._trained += 1
        if self._trained % self._length == 0:
            self.marks.append((time.perf_counter(), time.process_time()))
            if len(self.marks) % len(KINDS) == KINDS.index("bare writer") + 1:
                threading.Thread(target=write_plainly, args=(self._arrays, self._path)).start()


def measure() -> tuple[int, np.ndarray]:
    """Batches of a stretch, and seconds, shape [rounds, kinds, 2]: of a stretch, and of CPU time in it."""
    model, data = wide_model.build(SIZE), wide_model.batches(SIZE)
    began = time.perf_counter()
    model.fit(data, steps_per_epoch=10, verbose=0, shuffle=False)
    length = round(SECONDS / ((time.perf_counter() - began) / 10))
    arrays = [np.ascontiguousarray(variable.numpy()) for variable in wide_model.variables(model)]
    with tempfile.TemporaryDirectory() as directory:
        turns = Turns(length, arrays, f"{directory}/plain")
        # its saves fall on the beginnings of every third stretch; the first stretch is for warming up
        ours = GlobalStepCheckpoint(f"{directory}/{{batch}}.weights.h5", save_freq=len(KINDS) * length, keep_last=1)
        stretches = 1 + len(KINDS) * ROUNDS
        model.fit(data, steps_per_epoch=stretches * length, callbacks=[turns, ours], verbose=0, shuffle=False)
    return length, np.diff(turns.marks, axis=0).reshape(ROUNDS, len(KINDS), 2)


def main() -> None:
    """Prints the medians, and the median over the rounds of what each adds to the stretch without saves."""
    length, rounds = in_own_process(measure)
    gaps = np.median(rounds / rounds[:, :1] - 1, axis=0) * 100
    print(f"training loop, {SIZE} saved every {SECONDS} s     s for {length} batches   gap, %      CPU, s   gap, %")
    for kind, (seconds, cpu), (gap, cpu_gap) in zip(KINDS, np.median(rounds, axis=0), gaps, strict=True):
        print(f"{kind:<42}{seconds:>14.2f}{gap:>13.1f}{cpu:>12.2f}{cpu_gap:>9.1f}")


if __name__ == "__main__":
    main()
