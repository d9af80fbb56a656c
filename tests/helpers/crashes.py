"""Trains on any data until a batch crashes the run, and returns the warnings about the order of the data."""

import contextlib
import re
import warnings

import keras
import numpy as np
import tensorflow as tf
from small import BATCH, arrays, small_model

from callbacks import GlobalStepCheckpoint, counters_of

Dataset = tf.data.Dataset
SAID = re.compile("A resume may see this data in another order|The data may come in another order")


def batches(count=10):
    """Returns batches in the same order each time."""
    return Dataset.from_tensor_slices(arrays(count)).batch(BATCH)


def samples(count=10):
    return Dataset.from_tensor_slices(arrays(count))


def train(data, options, directory=None, crash=None, spe=1, scope=contextlib.nullcontext, **arguments):
    """Trains as in a new process, until a batch or to the end.

    Returns:
        The model, and the warnings about the order of its data.
    """
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    callbacks = []
    with scope():
        # Not Adam: Keras counts a step too many in each epoch of unknown length, and so would the run to compare with.
        model = small_model(keras.optimizers.SGD(0.05, momentum=0.9), steps_per_execution=spe)
    if directory:
        arguments = dict(save_freq=1, resume=True, background=crash is None) | arguments
        callbacks.append(GlobalStepCheckpoint(str(directory / "b{batch:02d}.weights.h5"), **arguments))
    if crash:
        callbacks.append(Crash(crash))
    with warnings.catch_warnings(record=True) as said, contextlib.suppress(InterruptedError):
        warnings.simplefilter("always")
        model.fit(*data(), verbose=0, callbacks=callbacks, **{"epochs": 3, **options})
    return model, [str(each.message) for each in said if SAID.match(str(each.message))]


class Crash(keras.callbacks.Callback):
    """Ends training with an exception after a batch, counted over all epochs."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        if counters_of(self.model).read().batch == self.after:
            raise InterruptedError


class CrashAfter(keras.callbacks.Callback):
    """Ends training with an exception after a batch. It counts the batches itself, for tests of the counters.

    Args:
        batch: the batch, counted from 1 over all epochs; None for none.
        batches_per_epoch: the number of batches in an epoch.
    """

    def __init__(self, batch, batches_per_epoch):
        super().__init__()
        self.batch, self.batches_per_epoch = batch, batches_per_epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch * self.batches_per_epoch + batch + 1 == self.batch:
            raise InterruptedError


def assert_equal(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
