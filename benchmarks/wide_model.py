"""A model with much state and little computation: as many weights as BERT-base, of any size."""

import keras
import numpy as np
import tensorflow as tf

LAYERS = 96  # a matrix and a vector each, and Adam's two copies: 578 variables
UNITS = {"1.2 GB": 1024, "0.12 GB": 320}  # 100.8 M and 9.9 M parameters
BATCH = 8


def build(size: str) -> keras.Model:
    """Returns a compiled model, trained on one batch, so that Adam's variables exist.

    Args:
        size: a key of `UNITS`: the size of weights and Adam's state.
    """
    keras.utils.set_random_seed(0)
    units = UNITS[size]
    layers = [keras.layers.Dense(units, activation="relu") for _ in range(LAYERS)]
    model = keras.Sequential([keras.Input([units]), *layers])
    model.compile(keras.optimizers.Adam(1e-6), "mse")
    model.fit(batches(size), steps_per_epoch=1, verbose=0, shuffle=False)
    return model


def batches(size: str) -> tf.data.Dataset:
    """Returns the same batch forever, so that reading data takes no time."""
    x = np.random.default_rng(0).standard_normal([BATCH, UNITS[size]], "float32")
    return tf.data.Dataset.from_tensors((x, x)).repeat()


def variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables that a checkpoint must contain."""
    return [*model.variables, *model.optimizer.variables]
