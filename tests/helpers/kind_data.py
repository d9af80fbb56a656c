"""Small data sets for the kinds of models."""

import numpy as np
import tensorflow as tf

BATCH, BATCHES = 4, 3  # samples of a global batch, batches of an epoch


def rows() -> tf.data.Dataset:
    """Batches of inputs `[4, 6]` and targets `[4, 1]`."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(BATCH * BATCHES, 6)), random.normal(size=(BATCH * BATCHES, 1))
    return tf.data.Dataset.from_tensor_slices((x.astype("float32"), y.astype("float32"))).batch(BATCH)


def tokens() -> tf.data.Dataset:
    """Batches of token ids `[4, 3]` and targets `[4, 1]`."""
    ids = np.random.default_rng(1).integers(0, 20, (BATCH * BATCHES, 3)).astype("int32")
    return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(ids).batch(BATCH), rows().map(lambda x, y: y))


def series() -> tf.data.Dataset:
    """Batches of series `[4, 3, 2]` and targets `[4, 1]`."""
    return rows().map(lambda x, y: (tf.reshape(x, (BATCH, 3, 2)), y))
