"""How long a save blocks training, for our callback and others that save the same number of bytes.

Each is measured in its own process, in a `fit` that saves after every third batch. The batch after a save runs in parallel with
the writer, and pays for copies on write. Then the benchmark waits for the writer, so that the next two batches run undisturbed.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from benchmarks import checkpoint_torch, wide_model
from benchmarks.own_process import in_own_process
from callbacks import GlobalStepCheckpoint

ROUNDS = 3  # after one round of warm-up
EVERY = 3  # batches


@dataclass(frozen=True)
class Saver:
    """A callback to measure.

    Args:
        callback: creates the callback that saves into a directory after every third batch.
        wait: waits until the background writer has finished.
    """

    callback: Callable[[str], keras.callbacks.Callback]
    wait: Callable[[keras.callbacks.Callback], None] = lambda callback: None


def _wait_for_newest(callback: GlobalStepCheckpoint) -> None:
    """Waits until the newest checkpoint exists and `keep_last` has deleted the one before it."""
    directory = callback.template.directory
    while callback.newest and [f"{directory}/{name}" for name in os.listdir(directory) if name[0] != "."] != [callback.newest]:
        time.sleep(0.01)


def _checkpoint_manager(directory: str) -> keras.callbacks.Callback:
    class Managed(keras.callbacks.Callback):
        def set_model(self, model):
            super().set_model(model)
            state = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            self._manager = tf.train.CheckpointManager(state, directory, max_to_keep=1)

        def on_train_batch_end(self, batch, logs=None):
            if (batch + 1) % EVERY == 0:
                self._manager.save()

    return Managed()


SAVERS = {
    "GlobalStepCheckpoint .weights.h5": Saver(
        lambda directory: GlobalStepCheckpoint(f"{directory}/{{batch}}.weights.h5", save_freq=EVERY, keep_last=1), _wait_for_newest
    ),
    "GlobalStepCheckpoint .keras": Saver(
        lambda directory: GlobalStepCheckpoint(f"{directory}/{{batch}}.keras", save_freq=EVERY, keep_last=1), _wait_for_newest
    ),
    "ModelCheckpoint .weights.h5": Saver(
        lambda directory: keras.callbacks.ModelCheckpoint(
            f"{directory}/{{batch}}.weights.h5", save_weights_only=True, save_freq=EVERY
        )
    ),
    "ModelCheckpoint .keras": Saver(
        lambda directory: keras.callbacks.ModelCheckpoint(f"{directory}/{{batch}}.keras", save_freq=EVERY)
    ),
    "BackupAndRestore": Saver(lambda directory: keras.callbacks.BackupAndRestore(directory, save_freq=EVERY)),
    "tf.train.CheckpointManager": Saver(_checkpoint_manager),
    "OrbaxCheckpoint, in background": Saver(
        lambda directory: keras.callbacks.OrbaxCheckpoint(directory, save_freq=EVERY),
        lambda callback: callback.wait_until_finished(),
    ),
}
OURS, TORCH = "GlobalStepCheckpoint .weights.h5", "torch.distributed async_save"


def measure(name: str, size: str) -> list[tuple[float, float, float]]:
    """Returns for each save, in seconds: the blocked time, the time of the next batch, and of the batch after that.

    Args:
        name: a key of `SAVERS`.
        size: a key of `wide_model.UNITS`.
    """
    model = wide_model.build(size)
    with tempfile.TemporaryDirectory() as directory:
        callback = SAVERS[name].callback(directory)
        return time_saves(model, wide_model.batches(size), callback, lambda: SAVERS[name].wait(callback), ROUNDS)


def time_saves(
    model: keras.Model,
    batches: Any,
    callback: keras.callbacks.Callback,
    wait: Callable[[], None],
    rounds: int,
    beside: Sequence[keras.callbacks.Callback] = (),
) -> list[tuple[float, float, float]]:
    """Returns for each save, in seconds: the blocked time, the time of the next batch, and of the batch after that.

    Args:
        model: a compiled model.
        batches: its training data, at least `EVERY * (rounds + 1) + 2` batches.
        callback: saves after every third batch.
        wait: waits until the callback has written the checkpoint.
        rounds: the number of saves to measure, after one round of warm-up.
        beside: more callbacks, which come before this one.
    """
    now = time.perf_counter
    reached, saved, resumed = [], [], []  # by batch

    def before(batch, logs):
        float(logs["loss"])  # a GPU has computed it then
        reached.append(now())

    def after(batch, logs):
        saved.append(now())
        if batch % EVERY == 0:
            wait()
        resumed.append(now())
        if batch + 1 == EVERY * (rounds + 1) + 2:
            model.stop_training = True

    timed = [
        *beside,
        keras.callbacks.LambdaCallback(on_train_batch_end=before),
        callback,
        keras.callbacks.LambdaCallback(on_train_batch_end=after),
    ]
    model.fit(batches, callbacks=timed, verbose=0)
    return [
        (saved[i] - reached[i], reached[i + 1] - resumed[i], reached[i + 2] - resumed[i + 1])
        for i in range(2 * EVERY - 1, len(saved) - 2, EVERY)
    ]


def _medians(name, size):
    try:
        rounds = in_own_process(*((checkpoint_torch.measure, size, ROUNDS) if name == TORCH else (measure, name, size)))
    except ImportError as error:
        print(f"{name:<34} not measured, not installed ({error}): pip install -r benchmarks/requirements.txt")
        return None
    return [statistics.median(column) * 1e3 for column in zip(*rounds, strict=True)]


def main() -> None:
    """Prints the medians and their ratios to ours."""
    print(f"time that a save blocks training, and time of the next batch (median of {ROUNDS})")
    print(
        f"{'1.2 GB: 100 M parameters, Adam':<34}{'blocked, ms':>12}{'to ours':>9}{'next batch, ms':>16}{'undisturbed':>13}",
        flush=True,
    )
    blocked = {}
    for name in (*SAVERS, TORCH):
        if medians := _medians(name, "1.2 GB"):
            blocked[name] = medians[0]
            ratio = f"{medians[0] / blocked[OURS]:.1f}x"
            print(f"{name:<34}{medians[0]:>12.2f}{ratio:>9}{medians[1]:>16.0f}{medians[2]:>13.0f}", flush=True)
    small = _medians(OURS, "0.12 GB")
    print(f"{OURS + ', 0.12 GB':<34}{small[0]:>12.2f}{small[0] / blocked[OURS]:>9.1f}{small[1]:>16.0f}{small[2]:>13.0f}")


if __name__ == "__main__":
    main()
