"""Several fits of one model, one after the other or one within the other, end like those of stock Keras, also after a restart."""

import contextlib

import keras
import numpy as np
import pytest
from crashes import Crash
from small import BATCH, arrays, fit

from callbacks import GlobalStepCheckpoint, counters_of


def train(program, directory=None, crash=None):
    """Runs a program on a new model, as in a new process. Returns the values of the model and its optimizer, and the counters.

    Args:
        program: receives the model and a function that trains it on ten batches an epoch.
        directory: the directory of the checkpoints; None for stock Keras alone.
        crash: the batch that ends the program.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    template = directory and directory / "b{batch:02d}.weights.h5"

    def train_on(*callbacks, **options):
        own = [GlobalStepCheckpoint(template, save_freq=5, resume=True)] if directory else []
        return fit(model, *own, *callbacks, *([Crash(crash)] if crash else []), shuffle=False, **options)

    with contextlib.suppress(InterruptedError):
        program(model, train_on)
    values = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return values, counters_of(model).read() if directory else None


def assert_ends_alike(program, tmp_path, crashes):
    """Checks that a program ends like stock Keras without checkpoints, and equally after crashes."""
    stock, _ = train(program)
    whole, counts = train(program, tmp_path / "whole")
    for crash in crashes:
        train(program, tmp_path / "cut", crash)
    cut, counts_of_cut = train(program, tmp_path / "cut")
    for expected, *others in zip(stock, whole, cut, strict=True):
        for each in others:
            np.testing.assert_array_equal(expected, each)
    assert counts == counts_of_cut


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fit_continues_where_the_one_before_ended(tmp_path, first):
    def program(model, train_on):
        train_on(epochs=first)
        train_on(epochs=3, initial_epoch=first)

    assert_ends_alike(program, tmp_path, crashes=[7, 17, 27])


def unfreeze(model, train_on, **options):
    """As in keras.io's guide to transfer learning: the second fit has a new optimizer, for more variables."""
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(0.05), "mse")
    train_on(epochs=2)
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(0.01), "mse")
    train_on(epochs=4, **options)


# After a crash at batch 20, the second fit has saved nothing.
@pytest.mark.parametrize("crashes", [[23], pytest.param([7, 20, 33], marks=pytest.mark.slow)])
def test_layers_are_unfrozen_between_two_fits(tmp_path, crashes):
    assert_ends_alike(lambda *arguments: unfreeze(*arguments, initial_epoch=2), tmp_path, crashes)


def test_the_fit_after_layers_were_unfrozen_counts_all_epochs(tmp_path):
    _, counts = train(unfreeze, tmp_path)
    assert (counts.batch, counts.epoch) == (40, 4)


def test_the_second_fit_has_another_optimizer(tmp_path):
    def program(model, train_on):
        train_on(epochs=2)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mae")
        train_on(epochs=4, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33])


def test_layers_get_adapters_between_two_fits(tmp_path):
    def program(model, train_on):
        train_on(epochs=2)
        model.layers[0].enable_lora(2)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        train_on(epochs=4, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33])


class Within(keras.callbacks.Callback):
    """Trains the same model on two batches at the end of each epoch."""

    is_running = False

    def on_epoch_end(self, epoch, logs=None):
        if not self.is_running:
            self.is_running = True
            self.model.fit(*arrays(2), batch_size=BATCH, verbose=0, shuffle=False)
            self.is_running = False


def test_a_callback_trains_the_model_with_a_fit_of_its_own(tmp_path):
    assert_ends_alike(lambda model, train_on: train_on(Within(), epochs=3), tmp_path, crashes=[17])


class WarmsUp(keras.callbacks.Callback):
    """Trains on two batches when training begins, like a search for the learning rate."""

    def on_train_begin(self, logs=None):
        for _ in range(2):
            self.model.train_on_batch(*arrays(1))


@pytest.mark.parametrize("crash", [17, pytest.param(22, marks=pytest.mark.slow)])  # in the middle and after the end of an epoch
def test_a_callback_trains_on_batches_when_training_begins(tmp_path, crash):
    assert_ends_alike(lambda model, train_on: train_on(WarmsUp(), epochs=3), tmp_path, crashes=[crash])
