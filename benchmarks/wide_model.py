"""A model with much state for its compute, to be saved: as many weights as BERT-base has, of any size."""

import keras
import numpy as np
import tensorflow as tf

LAYERS = 96  # a matrix and a vector each, and Adam's two copies: 578 variables
UNITS = {"1.2 GB": 1024, "0.12 GB": 320}  # 100.8 M and 9.9 M parameters
BATCH = 8


def build(size: str) -> keras.Model:
    """A compiled model that has been trained on one batch, so that Adam's variables are there.

    Args:
        size: a key of `UNITS`, the bytes of weights and Adam's state together.
    """
    keras.utils.set_random_seed(0)
    units = UNITS[size]
    layers = [keras.layers.Dense(units, activation="relu") for _ in range(LAYERS)]
    model = keras.Sequential([keras.Input([units]), *layers])
    model.compile(keras.optimizers.Adam(1e-6), "mse")
    model.fit(batches(size), steps_per_epoch=1, verbose=0, shuffle=False)
    return model


def batches(size: str) -> tf.data.Dataset:
    """The same batch for ever: reading data is not what is measured."""
    x = np.random.default_rng(0).standard_normal([BATCH, UNITS[size]], "float32")
    return tf.data.Dataset.from_tensors((x, x)).repeat()


def variables(model: keras.Model) -> list[keras.Variable]:
    """All that a checkpoint has to hold."""
    return [*model.variables, *model.optimizer.variables]
