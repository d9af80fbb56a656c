"""Trains mostly by waiting, so that a long run needs little CPU, and writes its own clock to DIRECTORY/clock.

python tests/programs/waiting_run.py DIRECTORY

Each line of the clock is a JSON list: process id, name, seconds, and for a batch its number over all processes. The seconds of
`started`, `trained` and `exit` are since 1970.
"""

import atexit
import json
import os
import sys
import time

import keras
import tensorflow as tf

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, RunRecord

EPOCHS, BATCHES, VALIDATION_BATCHES = 11, 20, 5
BATCH_WAIT, OTHER_WAIT = 0.1, 0.3  # seconds


class OwnClock(keras.callbacks.Callback):
    """Notes the spans of a training as seen from the first callback of the list."""

    def __init__(self, directory):
        super().__init__()
        self._file = os.open(f"{directory}/clock", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._spans, self._epoch, self._has_started = {}, 0, False

    def begin(self, name):
        self._spans[name] = time.time()

    def end(self, name, *more):
        self.write(name, time.time() - self._spans.pop(name), *more)

    def write(self, *more):
        os.write(self._file, json.dumps([os.getpid(), *more]).encode() + b"\n")

    def on_epoch_begin(self, epoch, logs=None):
        if "save" in self._spans:
            self.end("save")
        self._epoch = epoch
        self.begin("epoch")

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.end("epoch")
        self.begin("batch")
        self.begin("data")

    def on_train_batch_end(self, batch, logs=None):
        self.end("batch", self._epoch * BATCHES + batch + 1)
        if not self._has_started:
            self.write("started", time.time())
            self._has_started = True

    def on_test_begin(self, logs=None):
        self.begin("validation")

    def on_test_end(self, logs=None):
        self.end("validation")

    def on_train_end(self, logs=None):
        self.end("save")
        self.write("trained", time.time())


class WaitsAtEpochEnds(keras.callbacks.Callback):
    """The last callback of the list. Saves of an epoch come after it."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def on_epoch_end(self, epoch, logs=None):
        time.sleep(OTHER_WAIT)
        self._clock.begin("save")


class WaitingModel(keras.Sequential):
    """Waits in each train step, after its data have arrived."""

    own_clock: OwnClock

    def train_step(self, data):
        with tf.control_dependencies(tf.nest.flatten(data)):
            tf.numpy_function(self._wait, [], [])
        return super().train_step(data)

    def _wait(self):
        self.own_clock.end("data")
        time.sleep(BATCH_WAIT)


def waiting_data(batches):
    """Returns data that take a while to arrive."""

    def generate():
        for i in range(batches):
            time.sleep(BATCH_WAIT if i else OTHER_WAIT)
            yield tf.ones([4, 6]), tf.ones([4, 1])

    shapes = tf.TensorSpec([4, 6]), tf.TensorSpec([4, 1])
    data = tf.data.Dataset.from_generator(generate, output_signature=shapes).apply(tf.data.experimental.assert_cardinality(batches))
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # the wait for data would overlap with the step
    return data.with_options(options)


def slow_disk(fsync):
    """Returns an fsync that takes longer for checkpoints."""

    def flush(descriptor):
        if "weights" in os.readlink(f"/proc/self/fd/{descriptor}"):
            time.sleep(OTHER_WAIT)
        fsync(descriptor)

    return flush


def main(directory):
    clock = WaitingModel.own_clock = OwnClock(directory)
    os.fsync = slow_disk(os.fsync)
    model = WaitingModel([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch:05d}}.weights.h5", save_freq="epoch", background=False, resume=True)
    board = GlobalStepTensorBoard(f"{directory}/events", update_freq=BATCHES, write_graph=False)
    model.fit(
        waiting_data(BATCHES),
        validation_data=waiting_data(VALIDATION_BATCHES),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[clock, RunRecord(directory), board, checkpoint, WaitsAtEpochEnds(clock)],
    )
    time.sleep(2 * OTHER_WAIT)
    atexit.register(lambda: clock.write("exit", time.time()))  # afterwards, the interpreter runs no code of this program


if __name__ == "__main__":
    main(sys.argv[1])
