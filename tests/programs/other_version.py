"""Saves a run, or resumes one that was saved with other versions, and writes every variable to a file.

python tests/programs/other_version.py save|resume DIRECTORY
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint
from callbacks.model.state_tree import StateTree

SAVED, SUFFIXES = 5, (".weights.h5", ".keras")  # the batch; there are eight in an epoch


class WriteDown(keras.callbacks.Callback):
    """Writes all variables to an npz file: after the saved batch, or before the first batch after a resume."""

    def __init__(self, path, resumes):
        super().__init__()
        self.path, self.resumes = path, resumes

    def on_train_batch_begin(self, batch, logs=None):
        if self.resumes and batch == SAVED:
            self._write()

    def on_train_batch_end(self, batch, logs=None):
        if not self.resumes and batch + 1 == SAVED:
            self._write()

    def _write(self):
        np.savez(self.path, **{name: tf.convert_to_tensor(v).numpy() for name, v in StateTree(self.model).variables.items()})


def build():
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3, seed=1), layers.Dense(1)]
    )
    model.compile(keras.optimizers.AdamW(0.01, use_ema=True), "mse", metrics=["mae"])
    return model


def main(what, directory):
    tf.config.experimental.enable_op_determinism()
    for suffix in SUFFIXES:
        keras.backend.clear_session()
        keras.utils.set_random_seed(0 if what == "save" else 1)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(32, 6)).astype("float32"), random.normal(size=(32, 1)).astype("float32")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        template = f"{directory}/b{{batch}}{suffix}"
        checkpoint = GlobalStepCheckpoint(template, save_freq=SAVED, resume=what == "resume")
        write_down = WriteDown(f"{directory}/{what}{suffix}.npz", resumes=what == "resume")
        build().fit(data.take(SAVED) if what == "save" else data, verbose=0, callbacks=[checkpoint, write_down])


if __name__ == "__main__":
    main(*sys.argv[1:])
