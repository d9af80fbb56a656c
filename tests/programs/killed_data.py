"""Trains on every kind of data: uninterrupted, and killed by SIGKILL and resumed, each time in a new process.

Argument: a directory. Output: a line of JSON for each training, with the batches it has seen and the warnings, in their order.
"""

import json
import os
import signal
import sys
import warnings
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from small import with_built_optimizer

from callbacks import GlobalStepCheckpoint, counters_of, latest_checkpoint

BATCH, EPOCHS, STEPS = 4, 3, 5
KILLS = (3, 8)  # in the middle of an epoch: the first one, and one that is resumed in an earlier one
SEEDED, UNSEEDED = True, False
Dataset = tf.data.Dataset


def numbers(batches):
    """`[n, 1]`, and another for each sample."""
    return np.arange(batches * BATCH, dtype="float32")[:, np.newaxis]


def samples(batches):
    return Dataset.from_tensor_slices(numbers(batches))


def generator():
    while True:
        yield from ((batch,) for batch in np.split(numbers(7), 7))


class Batches(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return STEPS

    def __getitem__(self, index):
        return numbers(STEPS)[index * BATCH : (index + 1) * BATCH]


def images(directory):
    for number in range(STEPS * BATCH):
        folder = directory / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{number}.png", np.full((2, 2, 1), number, "uint8"), scale=False)
    return keras.utils.image_dataset_from_directory(directory / "images", image_size=(2, 2), batch_size=BATCH, verbose=False)


def one_for_all(batch):
    return tf.constant(7.0), batch


KINDS = {  # data, the options of `fit`, and whether the script sets a seed
    "steps_per_epoch below the data": (lambda _: samples(STEPS * EPOCHS).batch(BATCH), dict(steps_per_epoch=STEPS), SEEDED),
    "endless": (lambda _: samples(7).shuffle(28).batch(BATCH).repeat(), dict(steps_per_epoch=STEPS), SEEDED),
    "generator": (lambda _: generator(), dict(steps_per_epoch=STEPS), SEEDED),
    "PyDataset": (lambda _: Batches(), {}, SEEDED),
    "shuffled": (lambda _: samples(STEPS).shuffle(20).batch(BATCH), {}, SEEDED),
    "shuffled without a seed": (lambda _: samples(STEPS).shuffle(20).batch(BATCH), {}, UNSEEDED),
    "images of a directory": (images, {}, UNSEEDED),
    "scalars": (lambda _: Dataset.range(STEPS, output_type=tf.float32), {}, SEEDED),
    "a first part without samples": (lambda _: samples(STEPS).batch(BATCH).map(one_for_all), {}, SEEDED),
    "arrays": (lambda _: numbers(STEPS), dict(batch_size=BATCH), SEEDED),
}


class Model(keras.Model):
    """Trains on any batch, and records its number."""

    def __init__(self, note):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.note = note

    def train_step(self, data):
        parts = [tf.cast(part, tf.float32) for part in tf.nest.flatten(data)]
        tf.numpy_function(lambda *parts: self.note("batch", zlib.crc32(b"".join(part.tobytes() for part in parts))), parts, [])
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean(tf.square(self.scale - part)) for part in parts)
        self.optimizer.apply([*tape.gradient(loss, [self.scale.value])], [self.scale])
        return {"loss": loss}


class Kill(keras.callbacks.Callback):
    """Kills the process after a batch, counted from the beginning of training."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        if counters_of(self.model).read().batch == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def train(kind, directory, name, kill):
    """Trains until a batch, or to the end."""
    file = os.open(directory / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what, value):
        os.write(file, f"{json.dumps([what, value])}\n".encode())

    data, options, is_seeded = KINDS[kind]
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: note("said", str(message))
    if is_seeded:
        keras.utils.set_random_seed(1)
    model = Model(note)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
    with_built_optimizer(model)
    callbacks = []
    if name != "stock":
        template = directory / "checkpoints/b{batch:02d}.weights.h5"
        newest = latest_checkpoint(template)
        note("from", newest.batch if newest else 0)
        callbacks = [GlobalStepCheckpoint(template, save_freq=1, resume=True), Kill(kill)]
    model.fit(data(directory), epochs=EPOCHS, verbose=0, callbacks=callbacks, **options)
    note("weight", float(model.scale.numpy()))


def main():
    """Forks a process for each training, so that TensorFlow is imported once."""
    for number, kind in enumerate(KINDS):
        directory = Path(sys.argv[1], str(number))
        directory.mkdir()
        for name, kill in (("stock", None), ("first", KILLS[0]), ("second", KILLS[1]), ("last", None)):
            child = os.fork()
            if not child:
                train(kind, directory, name, kill)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            notes = [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]
            print(json.dumps({"kind": kind, "name": name, "code": code, "notes": notes}), flush=True)


if __name__ == "__main__":
    main()
