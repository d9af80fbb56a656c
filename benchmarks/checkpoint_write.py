"""Time and memory of a save and a restore of 1.2 GB, compared with a plain write, a plain read and Keras's own load.

The write time is from the end of the batch until the file has its final name, while training waits; the plain write is one file
of the same bytes with fsync. The memory is the peak of the process while it trains during a save, minus the peak without a save.
A restore reads the file from the disk, after it was evicted from the page cache; so do the plain reads, into memory that exists and
into new memory. Keras's `load_weights` and a second restore read it from the page cache. All alternatives take turns.

Times are the shortest of all rounds, as `timeit` recommends: a virtual machine may have to get each page of memory from its host
first, which takes up to four times as long as the write itself, and now one side pays, now the other. The medians follow.
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
from callbacks import GlobalStepCheckpoint, restore

SIZE = "1.2 GB"
ROUNDS = 13
LOADS = 2  # Keras takes 12 s for a `.keras` archive
EVERY = 20  # batches


def write_times(suffix: str) -> list[tuple[float, ...]]:
    """Returns the seconds of saves and of plain writes."""
    model = wide_model.build(SIZE)
    arrays = [np.ascontiguousarray(variable.numpy()) for variable in wide_model.variables(model)]
    times = []
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}{suffix}", save_freq=1, keep_last=1)

        def after(batch, logs):
            while not os.path.exists(checkpoint.newest):
                time.sleep(0.001)
            saved = time.perf_counter()
            write_plainly(arrays, f"{directory}/plain")
            times.append((saved - reached[-1], time.perf_counter() - saved))

        reached: list[float] = []
        before = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: reached.append(time.perf_counter()))
        _fit(model, ROUNDS, before, checkpoint, keras.callbacks.LambdaCallback(on_train_batch_end=after))
    return list(zip(*times, strict=True))


def read_times(suffix: str) -> list[tuple[float, ...]]:
    """Returns the seconds of restores, of both plain reads from the disk, and of restores and Keras's loads from the page cache."""
    model = wide_model.build(SIZE)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}{suffix}", save_freq=1)
        _fit(model, 1, checkpoint)
        path = checkpoint.newest
        size = os.path.getsize(path)
        memory = np.zeros(size, "uint8")

        def read(into):
            with open(path, "rb", buffering=0) as file:
                file.readinto(into.data)

        ways = (lambda: restore(model, path), lambda: read(memory), lambda: read(np.empty(size, "uint8")))
        from_disk = [[_seconds(way, path) for way in ways] for _ in range(ROUNDS)]
        cached = [(_seconds(lambda: restore(model, path)), _seconds(lambda: model.load_weights(path))) for _ in range(LOADS)]
    return [*zip(*from_disk, strict=True), *zip(*cached, strict=True)]


def extra_memory(suffix: str) -> int:
    """Returns the peak memory of the process with a save minus the peak without one, in bytes."""
    model = wide_model.build(SIZE)
    with tempfile.TemporaryDirectory() as directory:

        def stop(batch, logs):
            model.stop_training |= bool(glob.glob(f"{directory}/*{suffix}"))  # at the second save, which waits for the first

        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}{suffix}", save_freq=EVERY, keep_last=1)
        checkpoint.set_model(model)  # so that the train function is traced once, as in a process that trains
        _forget_peak_memory()
        _fit(model, 2 * EVERY)
        without = _peak_memory()
        _forget_peak_memory()
        _fit(model, 3 * EVERY, keras.callbacks.LambdaCallback(on_train_batch_begin=stop), checkpoint)
        return _peak_memory() - without


def _fit(model, batches, *callbacks):
    model.fit(wide_model.batches(SIZE), steps_per_epoch=batches, callbacks=list(callbacks), verbose=0, shuffle=False)


def _seconds(act, evicted=None):
    """Returns how long a function takes, after a file was evicted from the page cache, if one is given."""
    if evicted:
        with open(evicted, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _forget_peak_memory():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def main() -> None:
    """Prints a table with two lines for each format: the shortest times, and the medians."""
    of_saves, of_restores = "write, s   plain   rate   extra, MB", "restore, s   plain   ratio   new memory   cached, s   Keras"
    print(f"{'save and restore of 1.2 GB':<33}{of_saves}   {of_restores}")
    for suffix in (".weights.h5", ".keras"):
        times = [*in_own_process(write_times, suffix), *in_own_process(read_times, suffix)]
        extra = in_own_process(extra_memory, suffix)
        for title, choose in ((suffix, min), ("  median", statistics.median)):
            write, plain_write, back, plain_read, new_memory, cached, by_keras = map(choose, times)
            print(
                f"{title:<32}{write:>9.2f}{plain_write:>8.2f}{plain_write / write:>7.2f}{extra / 1e6:>12.0f}"
                f"{back:>13.2f}{plain_read:>8.2f}{back / plain_read:>8.2f}{new_memory:>13.2f}{cached:>12.2f}{by_keras:>8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
