"""A small model and its data, for tests that do not depend on the model."""

import keras
import numpy as np

BATCH, BATCHES = 4, 10  # samples of a batch, batches of an epoch


def small_model(optimizer="adam", **compiled):
    """Six weights and a bias."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **compiled)
    return with_built_optimizer(model)


def with_built_optimizer(model):
    """Builds the optimizer of a model. If the first batch did, TensorFlow would trace the train step twice, for most of the CPU.

    `test_models.py` and `test_kinds_of_models.py` resume models whose optimizers are not built.
    """
    model.optimizer.build(model.trainable_variables)
    return model


def arrays(batches=BATCHES):
    """Inputs `[n, 6]` and targets `[n, 1]`."""
    random = np.random.default_rng(0)
    return random.normal(size=(batches * BATCH, 6)).astype("float32"), random.normal(size=(batches * BATCH, 1)).astype("float32")


def fit(model, *callbacks, batches=BATCHES, **options):
    """Trains on an epoch of ten batches."""
    return model.fit(*arrays(batches), batch_size=BATCH, verbose=0, callbacks=list(callbacks), **options)


def names(directory):
    """The visible files."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def fail():
    """Ends a `fit` as an interruption does, for `Do`."""
    raise InterruptedError


class Do(keras.callbacks.Callback):
    """Calls a function after a batch of this fit, counted from 1."""

    def __init__(self, after, act):
        super().__init__()
        self.after, self.act, self.seen = after, act, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.after:
            self.act()
