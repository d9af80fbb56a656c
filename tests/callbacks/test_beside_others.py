"""Other callbacks may change the model in any way: a run that is killed and resumed ends like the uninterrupted one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_rest, assert_same_weights
from curves import curves
from small import Do, arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, counters_of, latest_checkpoint

EPOCHS = 3


class Stop(Exception):
    """A crash."""


def crash():
    raise Stop


class Changes(keras.callbacks.Callback):
    """Changes a variable of the model in one hook, and counts the calls in the variable."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self._change)

    def _change(self, *arguments, logs=None):
        kernel = self.model.layers[0].kernel
        kernel.assign(kernel * 0.75)
        self.model.marker.assign_add(1.0)


class Stops(keras.callbacks.Callback):
    """Ends training after a batch of an epoch, both counted from 0."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.model.stop_training = True


def marked_model():
    keras.backend.clear_session(free_memory=False)  # because names are stored
    keras.utils.set_random_seed(5)
    model = small_model(keras.optimizers.SGD(0.05, momentum=0.5), metrics=["mae"])
    model.marker = tf.Variable(0.0, trainable=False)
    return model


def life(directory, *others, crash_at=None, first=False, trains=None, **options):
    """Runs a `fit` that resumes, with other callbacks after or before ours.

    Args:
        trains: whether the kernel is trained at first, by an optimizer that is not built yet; None for the model as it is.
    """
    model = marked_model()
    if trains is not None:
        model.layers[0]._kernel.trainable = trains
        model.compile(keras.optimizers.SGD(0.05, momentum=0.5), "mse", metrics=["mae"])
    own = GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=4, resume=True)
    listed = [*others, own] if first else [own, *others]
    crashes = [Do(crash_at, crash)] if crash_at else []
    return model, fit(model, *listed, *crashes, epochs=EPOCHS, validation_data=arrays(2), shuffle=False, **options)


def assert_same_end(tmp_path, whole, cut):
    assert [float(model.marker.numpy()) for model, _ in (whole, cut)] == [float(whole[0].marker.numpy())] * 2
    assert cut[1].history == whole[1].history
    assert_same_weights(tmp_path / "cut" / "b30.weights.h5", tmp_path / "whole" / "b30.weights.h5")
    assert_same_rest(tmp_path / "cut" / "b30.weights.h5", tmp_path / "whole" / "b30.weights.h5")


HOOKS = ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end"]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_changes_that_a_callback_makes_to_the_model_are_applied_once(tmp_path, hook, first):
    """Crashes in the middle of an epoch, at batch 18, and after its end, at batch 21: the eleventh of a fit that resumes in it."""
    whole = life(tmp_path / "whole", Changes(hook), first=first)
    for crash_at in (18, 11):
        with pytest.raises(Stop):
            life(tmp_path / "cut", Changes(hook), first=first, crash_at=crash_at)
    assert latest_checkpoint(tmp_path / "cut").batch == 20
    cut = life(tmp_path / "cut", Changes(hook), first=first)
    assert_same_end(tmp_path, whole, cut)


@pytest.mark.parametrize("first", [True, False])
def test_a_change_when_training_begins_is_applied_once(tmp_path, first):
    whole = life(tmp_path / "whole", Changes("on_train_begin"), first=first)
    with pytest.raises(Stop):
        life(tmp_path / "cut", Changes("on_train_begin"), first=first, crash_at=18)
    cut = life(tmp_path / "cut", Changes("on_train_begin"), first=first)
    assert_same_end(tmp_path, whole, cut)


@pytest.mark.parametrize("first", [True, False])
def test_a_schedule_that_multiplies_the_rate_multiplies_once_for_each_epoch(tmp_path, first):
    def schedule():
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)

    whole = life(tmp_path / "whole", schedule(), first=first)
    with pytest.raises(Stop):
        life(tmp_path / "cut", schedule(), first=first, crash_at=18)
    cut = life(tmp_path / "cut", schedule(), first=first)
    assert_same_end(tmp_path, whole, cut)
    assert [float(model.optimizer.learning_rate.numpy()) for model, _ in (whole, cut)] == pytest.approx([0.00625] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_an_epoch_that_a_callback_cuts_is_finished_after_a_resume(tmp_path, first):
    """It is cut after its first batch, before a save (which is then made) and at a save."""
    whole = life(tmp_path / "whole", Changes("on_train_batch_end"), first=first)
    for at in ((0, 0), (1, 6), (1, 7)):
        life(tmp_path / "cut", Changes("on_train_batch_end"), Stops(*at), first=first)
        cut_at = latest_checkpoint(tmp_path / "cut")
        assert (cut_at.batch, cut_at.epoch) == (10 * at[0] + at[1] + 1, at[0] + 1)
    cut = life(tmp_path / "cut", Changes("on_train_batch_end"), first=first)
    assert_same_end(tmp_path, whole, cut)


@pytest.mark.parametrize("template", ["e{epoch}.weights.h5", "e{epoch}-{val_loss:.5f}.weights.h5"])
@pytest.mark.parametrize("best", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cut_epoch_is_saved_as_stock_saves_it_and_finished_after_a_resume(tmp_path, template, best):
    for kind in (keras.callbacks.ModelCheckpoint, GlobalStepCheckpoint):
        directory = tmp_path / kind.__name__
        directory.mkdir()
        model, validation = marked_model(), arrays(2)
        own = kind(str(directory / template), save_weights_only=True, save_best_only=best)
        fit(model, Stops(1, 6), own, epochs=EPOCHS, validation_data=validation, shuffle=False)
    assert names(tmp_path / "GlobalStepCheckpoint") == names(tmp_path / "ModelCheckpoint") != []
    whole = marked_model()
    expected = fit(whole, epochs=EPOCHS, validation_data=validation, shuffle=False)
    resumed = marked_model()
    checkpoint = GlobalStepCheckpoint(directory / template, save_weights_only=True, save_best_only=best, resume=True)
    history = fit(resumed, checkpoint, epochs=EPOCHS, validation_data=validation, shuffle=False)
    assert history.history == expected.history and counters_of(resumed).read().batch == 30
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_that_ends_where_training_stops_is_complete(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"), Stops(1, 9), epochs=EPOCHS)
    resumed = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", resume=True)
    fit(small_model(), resumed, epochs=EPOCHS)
    assert resumed.initial_epoch == 2


class Works(keras.callbacks.Callback):
    """Uses the model in all ways, in the middle and at the end of epochs."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            self.model.predict(arrays(1)[0], verbose=0)
            keras.backend.clear_session(free_memory=False)

    def on_epoch_end(self, epoch, logs=None):
        logs["own_loss"] = self.model.evaluate(*arrays(1), verbose=0)[0]
        self.model.export(self.directory / f"export{epoch}", verbose=False)
        keras.backend.clear_session(free_memory=False)


@pytest.mark.slow
def test_callbacks_may_evaluate_predict_export_and_clear_the_session(tmp_path):
    whole = life(tmp_path / "whole", Works(tmp_path))
    with pytest.raises(Stop):
        life(tmp_path / "cut", Works(tmp_path), crash_at=18)
    cut = life(tmp_path / "cut", Works(tmp_path))
    assert_same_end(tmp_path, whole, cut)


class Compiles(keras.callbacks.Callback):
    """Compiles the model when the second epoch begins.

    Args:
        trains: whether the kernel is trained from then on.
    """

    def __init__(self, trains):
        super().__init__()
        self.trains = trains

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0]._kernel.trainable = self.trains
            self.model.compile(keras.optimizers.SGD(0.01, momentum=0.5), "mse", metrics=["mae"])
            self.model.make_train_function()


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(True, True), (False, True), (True, False)], ids=["the same", "unfreezes", "freezes"])
def test_callbacks_may_compile(tmp_path, first, then):
    """Crashes before that, at batch 8, and after it, at batch 18."""
    whole = life(tmp_path / "whole", Compiles(then), trains=first)
    for crash_at in (8, 18):
        with pytest.raises(Stop):
            life(tmp_path / "cut", Compiles(then), trains=first, crash_at=crash_at)
    assert latest_checkpoint(tmp_path / "cut").batch == 16
    cut = life(tmp_path / "cut", Compiles(then), trains=first)
    assert cut[1].history == whole[1].history
    assert_same_weights(tmp_path / "cut" / "b30.weights.h5", tmp_path / "whole" / "b30.weights.h5")


def test_our_callbacks_take_part_in_an_evaluation_before_any_fit(tmp_path):
    model = small_model()
    own = [GlobalStepTensorBoard(tmp_path / "tb"), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5")]
    loss = model.evaluate(*arrays(1), verbose=0, callbacks=own)
    assert curves(tmp_path / "tb")["validation", "evaluation_loss_vs_iterations"] == [(0, pytest.approx(loss))]
    fit(model, *own)
    after = model.evaluate(*arrays(1), verbose=0, callbacks=own)
    assert curves(tmp_path / "tb")["validation", "evaluation_loss_vs_iterations"][-1] == (10, pytest.approx(after))
    assert curves(tmp_path / "tb")["train", "epoch_loss"][0][0] == 10
    model.predict(arrays(1)[0], verbose=0, callbacks=own)
