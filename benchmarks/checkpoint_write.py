"""Time and memory of a save and a restore of 1.2 GB, compared with a plain write and a plain read.

The write time is from the end of the batch until the file has its final name, while training waits; the plain write is one file
of the same bytes with fsync. The memory is the peak of the process while it trains during a save, minus the peak without a save.
A restore is compared with reading the file into new memory. All alternatives take turns; the results are medians.
"""

import glob
import os
import statistics
import tempfile
import time

import keras
import numpy as np

from benchmarks import wide_model
from benchmarks.own_process import in_own_process
from benchmarks.plain_write import write_plainly
from callbacks import GlobalStepCheckpoint, counters_of, restore

SIZE = "1.2 GB"
ROUNDS, UNCOUNTED = 9, 4  # the first saves and plain writes also allocate memory
EVERY = 20  # batches


def times(suffix: str) -> tuple[int, float, float, float, float]:
    """Returns the file size in bytes, and medians in seconds of a save, a plain write, a restore and a plain read."""
    model = wide_model.build(SIZE)
    arrays = [np.ascontiguousarray(variable.numpy()) for variable in wide_model.variables(model)]
    saves = []
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}{suffix}", save_freq=1, keep_last=1)

        def after(batch, logs):
            while not os.path.exists(checkpoint.newest):
                time.sleep(0.001)
            saved = time.perf_counter()
            write_plainly(arrays, f"{directory}/plain")
            saves.append((saved - reached[-1], time.perf_counter() - saved))

        reached: list[float] = []
        before = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: reached.append(time.perf_counter()))
        _fit(model, UNCOUNTED + ROUNDS, before, checkpoint, keras.callbacks.LambdaCallback(on_train_batch_end=after))
        path = checkpoint.newest
        reads = [_read_times(model, path) for _ in range(UNCOUNTED + ROUNDS)]
        size = os.path.getsize(path)
    return (size, *(statistics.median(column) for rows in (saves, reads) for column in zip(*rows[UNCOUNTED:], strict=True)))


def extra_memory(suffix: str) -> int:
    """Returns the peak memory of the process with a save minus the peak without one, in bytes."""
    model = wide_model.build(SIZE)
    counters_of(model)  # so that the train function is traced once, as in a process that trains
    _forget_peak_memory()
    _fit(model, 2 * EVERY)
    without = _peak_memory()
    with tempfile.TemporaryDirectory() as directory:

        def stop(batch, logs):
            model.stop_training |= bool(glob.glob(f"{directory}/*{suffix}"))  # at the second save, which waits for the first

        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}{suffix}", save_freq=EVERY, keep_last=1)
        _forget_peak_memory()
        _fit(model, 3 * EVERY, keras.callbacks.LambdaCallback(on_train_batch_begin=stop), checkpoint)
        return _peak_memory() - without


def _fit(model, batches, *callbacks):
    model.fit(wide_model.batches(SIZE), steps_per_epoch=batches, callbacks=list(callbacks), verbose=0, shuffle=False)


def _read_times(model, path):
    began = time.perf_counter()
    restore(model, path)
    restored = time.perf_counter()
    np.fromfile(path, "uint8")
    return restored - began, time.perf_counter() - restored


def _forget_peak_memory():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def main() -> None:
    """Prints one line for each format."""
    print("save and restore of 1.2 GB      write, s    plain   rate   extra memory, MB   restore, s   plain   ratio")
    for suffix in (".weights.h5", ".keras"):
        size, write, plain_write, back, plain_read = in_own_process(times, suffix)
        extra = in_own_process(extra_memory, suffix)
        print(
            f"{suffix:<14}{size / 1e6:>9.0f} MB{write:>15.2f}{plain_write:>9.2f}{plain_write / write:>7.2f}{extra / 1e6:>19.0f}"
            f"{back:>13.2f}{plain_read:>8.2f}{back / plain_read:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
