"""Several fits of one model, one after the other or one within the other, end like those of stock Keras, also after a restart."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from crashes import Crash
from small import BATCH, arrays, with_built_optimizer

from callbacks import GlobalStepCheckpoint, InputError, counters_of

pytestmark = pytest.mark.slow


def small():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])


def in_order():
    """Ten batches, in the same order in each epoch."""
    x, y = arrays()
    return {"x": x, "y": y, "batch_size": BATCH, "shuffle": False}


def train(program, directory=None, crash=None, save_freq=5, make=small, scope=contextlib.nullcontext):
    """Runs a program on a new model, as in a new process. Returns the values of the model and its optimizer, and the counters.

    Args:
        program: receives the model and a function that trains it on ten batches an epoch, or on other data.
        directory: the directory of the checkpoints; None for stock Keras alone.
        crash: the batch that ends the program.
        save_freq: as in `GlobalStepCheckpoint`.
        make: makes the model, in a scope.
    """
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with scope():
        model = make()
        model.compile(keras.optimizers.Adam(0.05), "mse")
        with_built_optimizer(model)
    template = directory and directory / "b{batch:02d}.weights.h5"

    def train_on(*callbacks, data=None, **options):
        own = [GlobalStepCheckpoint(template, save_freq=save_freq, resume=True)] if directory else []
        all_callbacks = [*own, *callbacks, *([Crash(crash)] if crash else [])]
        return model.fit(**(data or in_order()), verbose=0, callbacks=all_callbacks, **options)

    with contextlib.suppress(InterruptedError):
        program(model, train_on)
    values = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return values, counters_of(model).read() if directory else None


def assert_ends_alike(program, tmp_path, crashes, as_stock=True, **options):
    """Checks that a program ends like stock Keras without checkpoints, and equally after crashes."""
    whole, counts = train(program, tmp_path / "whole", **options)
    for crash in crashes:
        train(program, tmp_path / "cut", crash, **options)
    cut, counts_of_cut = train(program, tmp_path / "cut", **options)
    for expected, *others in zip(whole, cut, *([train(program, **options)[0]] if as_stock else []), strict=True):
        for each in others:
            np.testing.assert_array_equal(expected, each)
    assert counts == counts_of_cut


def test_a_fit_continues_where_the_one_before_ended(tmp_path):
    def program(model, train_on):
        train_on(epochs=1)
        train_on(epochs=3, initial_epoch=1)

    assert_ends_alike(program, tmp_path, crashes=[7, 17, 27])


def unfreeze(model, train_on, *callbacks, data=(None, None), **options):
    """As in keras.io's guide to transfer learning: the second fit has a new optimizer, for more variables."""
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(0.05), "mse")
    train_on(*callbacks, data=data[0], epochs=2)
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(0.01), "mse")
    train_on(*callbacks, data=data[1], epochs=4, **options)


def test_layers_are_unfrozen_between_two_fits(tmp_path):
    """At the crashes at batches 20 and 23, the second fit has saved nothing."""
    assert_ends_alike(lambda *arguments: unfreeze(*arguments, initial_epoch=2), tmp_path, crashes=[7, 20, 23, 33])


def test_the_fit_after_layers_were_unfrozen_counts_all_epochs(tmp_path):
    _, counts = train(unfreeze, tmp_path)
    assert (counts.batch, counts.epoch) == (40, 4)


def shuffled(batches=10):
    """Batches in another order in each epoch."""
    return tf.data.Dataset.from_tensor_slices(arrays(batches)).shuffle(batches * BATCH, seed=3).batch(BATCH)


DATA = {
    "the same data in both fits": lambda: [{"x": shuffled()}] * 2,
    "other data in each fit": lambda: [{"x": shuffled()}, {"x": shuffled()}],
    "a part of a pass in each epoch": lambda: [{"x": shuffled(60), "steps_per_epoch": 10}] * 2,
}


@pytest.mark.parametrize("kind", DATA)
def test_the_fit_after_layers_were_unfrozen_sees_the_same_batches_if_it_crashes_before_its_first_save(tmp_path, kind):
    def program(model, train_on):
        unfreeze(model, train_on, data=DATA[kind](), initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[23], save_freq="epoch")


def test_a_fit_fails_at_its_first_batch_after_layers_were_unfrozen(tmp_path):
    """For example for lack of memory. The user compiles and trains again, with smaller batches."""

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise MemoryError

    def program(model, train_on):
        def train_and_fail(*callbacks, **options):
            if "initial_epoch" in options:
                with contextlib.suppress(MemoryError):
                    train_on(Fails(), **options)
                model.compile(keras.optimizers.Adam(0.01), "mse")
            train_on(*callbacks, **options)

        unfreeze(model, train_and_fail, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33])


def test_a_fit_is_interrupted_before_its_first_save_after_layers_were_unfrozen(tmp_path):
    """Its batches are in no checkpoint, and the one before does not fit the new optimizer."""

    def program(model, train_on):
        with contextlib.suppress(KeyboardInterrupt):
            unfreeze(model, lambda **options: train_on(Interrupt(), **options), initial_epoch=2)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        train_on(epochs=4, initial_epoch=2)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if counters_of(self.model).read().batch == 23:
                raise KeyboardInterrupt

    with pytest.raises(InputError, match=r"b20.weights.h5: it was saved at batch 20\. .* trained up to batch 23 and compiled"):
        train(program, tmp_path, save_freq="epoch")


def test_layers_are_unfrozen_beside_a_second_checkpoint_of_the_best_state(tmp_path):
    def program(model, train_on):
        best = GlobalStepCheckpoint(tmp_path / "best.weights.h5", monitor="loss", save_best_only=True)
        unfreeze(model, train_on, best, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33])


def two_alike():
    """A model with two layers of the same shape, of which the first one is trained."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6), keras.layers.Dense(6), keras.layers.Dense(1)])
    model.layers[1].trainable = False
    return model


def test_the_second_fit_trains_a_layer_of_the_same_shape(tmp_path, strategy):
    scope = strategy(2).scope

    def program(model, train_on):
        train_on(epochs=2)
        model.layers[0].trainable, model.layers[1].trainable = False, True
        with scope():
            model.compile(keras.optimizers.Adam(0.01), "mse")
        train_on(epochs=4, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33], make=two_alike, scope=scope)


class Thaws(keras.callbacks.Callback):
    """Also trains the first layer from the fourth epoch on."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            self.model.layers[0].trainable = True
            self.model.compile(keras.optimizers.Adam(0.01), "mse")
            self.model.make_train_function()


def test_a_callback_unfreezes_further_layers_in_the_second_fit(tmp_path):
    """The crashes are in the epoch that the callback has changed, and after it."""

    def program(model, train_on):
        model.layers[0].trainable = False
        model.compile(keras.optimizers.Adam(0.05), "mse")
        train_on(epochs=2)
        model.layers[1].trainable = True
        model.compile(keras.optimizers.Adam(0.02), "mse")
        train_on(Thaws(), epochs=5, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33, 43], save_freq="epoch", make=two_alike)


class TrainsItsHead(keras.Sequential):
    """Its train step updates the last layer only."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        variables = self.layers[-1].trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def test_a_new_optimizer_for_the_same_layers_continues_with_the_moments_of_the_checkpoint(tmp_path):
    def make():
        return TrainsItsHead([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(1)])

    def program(model, train_on):
        train_on(epochs=2)
        model.compile(keras.optimizers.Adam(0.05), "mse")
        train_on(epochs=4, initial_epoch=2)

    assert_ends_alike(program, tmp_path, crashes=[33], as_stock=False, save_freq="epoch", make=make)


@pytest.mark.parametrize("initial_epoch", [2, 3])
def test_a_callback_has_ended_the_fit_before_layers_were_unfrozen(tmp_path, initial_epoch):
    """In the second fit, epochs count from the end of training or from the planned end."""

    def program(model, train_on):
        model.layers[0].trainable = False
        model.compile(keras.optimizers.Adam(0.05), "mse")
        train_on(keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9), epochs=3)
        model.layers[0].trainable = True
        model.compile(keras.optimizers.Adam(0.01), "mse")
        train_on(epochs=5, initial_epoch=initial_epoch)

    if initial_epoch == 3:
        assert_ends_alike(program, tmp_path, crashes=[33])
        return
    with pytest.warns(UserWarning, match="This fit begins with epoch 3, but the fit before has epochs=3.* Pass initial_epoch=3"):
        train(program, tmp_path, crash=27)
    with pytest.warns(UserWarning, match=r"b25.weights.h5 was saved by a fit with other frozen layers"):
        train(program, tmp_path)


def test_a_checkpoint_that_no_fit_could_restore_is_not_taken_for_the_model_in_memory(tmp_path):
    def adapt(rank):
        def program(model, train_on):
            train_on(epochs=2)
            model.layers[0].enable_lora(rank)
            model.compile(keras.optimizers.Adam(0.01), "mse")
            train_on(epochs=4, initial_epoch=2)

        return program

    train(adapt(2), tmp_path, crash=33, save_freq="epoch")
    with (
        pytest.raises(InputError, match=r"is of another model: .*lora"),
        pytest.warns(UserWarning, match="The model is not restored"),
    ):
        train(adapt(3), tmp_path, save_freq="epoch")


def test_the_second_fit_has_another_optimizer_with_a_schedule_as_its_learning_rate(tmp_path):
    def program(model, train_on):
        train_on(epochs=2)
        model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.01, 40), momentum=0.9), "mae")
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


def test_a_callback_trains_on_batches_when_training_begins(tmp_path):
    """The crashes are in the middle and after the end of an epoch."""
    assert_ends_alike(lambda model, train_on: train_on(WarmsUp(), epochs=3), tmp_path, crashes=[17, 22])


class Rehearses(keras.callbacks.Callback):
    """Trains on a further batch after every third batch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch % 3 == 1:
            self.model.train_on_batch(*arrays(1))


def test_a_callback_trains_on_batches_in_the_middle_of_an_epoch(tmp_path):
    """The first crash comes after a save and the batch of the callback that follows it; before the second one, none follows."""
    assert_ends_alike(lambda model, train_on: train_on(Rehearses(), epochs=3), tmp_path, crashes=[17, 27])
