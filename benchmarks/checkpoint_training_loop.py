"""A training loop that saves 1.2 GB every 10 s, compared with no saves and with a plain writer of the same number of bytes.

One `fit` alternates between periods of 10 s: without a save, with a plain write, and with our save. The plain writer is a thread
that writes an old copy of the state to a file and calls fsync, without snapshot, format, checksum or rename. Its effect on the loop
is the cost of writing these bytes on this machine. CPU time is shown too, because other processes do not affect it. But a virtual
machine whose host takes free pages back spends CPU time on getting them again, so the least CPU time of all rounds is shown too.
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
SECONDS, ROUNDS = 10, 8
KINDS = ("without saves", "plain writer", "GlobalStepCheckpoint")


class Turns(keras.callbacks.Callback):
    """Divides training into periods of equal length, and starts the plain writer at the beginning of every third period.

    Args:
        length: batches in a period.
        arrays: the arrays to write.
        path: the file to write.
    """

    def __init__(self, length: int, arrays: list[np.ndarray], path: str):
        super().__init__()
        self._length, self._arrays, self._path = length, arrays, path
        self._trained = 0
        self.marks: list[tuple[float, float]] = []  # wall and CPU time at the end of each period

    def on_train_batch_end(self, batch, logs=None):
        self._trained += 1
        if self._trained % self._length == 0:
            self.marks.append((time.perf_counter(), time.process_time()))
            if len(self.marks) % len(KINDS) == KINDS.index("plain writer") + 1:
                threading.Thread(target=write_plainly, args=(self._arrays, self._path)).start()


def measure() -> tuple[int, np.ndarray]:
    """Returns the batches in a period, and the wall and CPU seconds of each period, `[rounds, kinds, 2]`."""
    model, data = wide_model.build(SIZE), wide_model.batches(SIZE)
    began = time.perf_counter()
    model.fit(data, steps_per_epoch=10, verbose=0, shuffle=False)
    length = round(SECONDS / ((time.perf_counter() - began) / 10))
    arrays = [np.ascontiguousarray(variable.numpy()) for variable in wide_model.variables(model)]
    with tempfile.TemporaryDirectory() as directory:
        turns = Turns(length, arrays, f"{directory}/plain")
        # it saves at the beginning of every third period; the first period is warm-up
        ours = GlobalStepCheckpoint(f"{directory}/{{batch}}.weights.h5", save_freq=len(KINDS) * length, keep_last=1)
        periods = 1 + len(KINDS) * ROUNDS
        model.fit(data, steps_per_epoch=periods * length, callbacks=[turns, ours], verbose=0, shuffle=False)
    return length, np.diff(turns.marks, axis=0).reshape(ROUNDS, len(KINDS), 2)


def main() -> None:
    """Prints medians, the median increase over the period without saves, and the CPU seconds that a save adds."""
    length, rounds = in_own_process(measure)
    gaps = np.median(rounds / rounds[:, :1] - 1, axis=0) * 100
    medians = np.median(rounds, axis=0)
    least = rounds[:, :, 1].min(axis=0)
    print(
        f"training loop, {SIZE} saved every {SECONDS} s     s for {length} batches   gap, %   CPU, s   gap, %   per save, s   least"
    )
    for i, kind in enumerate(KINDS):
        print(f"{kind:<42}{medians[i, 0]:>14.2f}{gaps[i, 0]:>13.1f}{medians[i, 1]:>9.2f}{gaps[i, 1]:>9.1f}", end="")
        print(f"{medians[i, 1] - medians[0, 1]:>14.2f}{least[i] - least[0]:>8.2f}")


if __name__ == "__main__":
    main()
