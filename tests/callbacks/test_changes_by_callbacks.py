"""Changes that callbacks and train steps make to the model survive a restart: new variables, frozen layers."""

import contextlib
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from crashes import CrashAfter
from small import BATCHES, arrays, fit, names

from callbacks import GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint, restore
from callbacks.disk import files

EPOCHS = 3


def two_layers(optimizer=None):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(0.05), "mse")
    return model


def train(directory, make, *callbacks, crash=None):
    """Trains a new model from the newest checkpoint. Returns the model, all of its values, and its history."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = make()
    checkpoint = GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=1, resume=True, background=False)
    others = [callback() for callback in callbacks]
    with contextlib.suppress(InterruptedError):
        history = fit(model, checkpoint, *others, *([CrashAfter(crash, BATCHES)] if crash else []), epochs=EPOCHS, shuffle=False)
        assert not crash
        return model, [v.numpy() for v in (*model.variables, *model.optimizer.variables)], history.history
    checkpoint._writer.finish()
    return None


class Freeze(keras.callbacks.Callback):
    """Freezes the first layer from the second epoch on."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = self.model.layers[1].trainable = False
            self.model.make_train_function(force=True)


class FreezeWithoutEffect(keras.callbacks.Callback):
    """Freezes the first layer without retracing the train step."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = False


class Unfreeze(keras.callbacks.Callback):
    """Trains all layers from the second epoch on, with another rate, as in keras.io's guide to fine-tuning."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = self.model.layers[1].trainable = True
            self.model.compile(keras.optimizers.Adam(0.01), "mse")
            self.model.make_train_function()


class FineTune(Unfreeze):
    """Before that, trains only the last layer."""

    def on_train_begin(self, logs=None):
        self.model.layers[0].trainable = self.model.layers[1].trainable = False


def frozen():
    model = two_layers()
    model.layers[0].trainable = model.layers[1].trainable = False
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


FREEZES = {
    "frozen": (two_layers, Freeze),
    "frozen without effect": (two_layers, FreezeWithoutEffect),
    "unfrozen and compiled": (frozen, Unfreeze),
    "frozen when training begins, then unfrozen": (two_layers, FineTune),
}


@pytest.mark.parametrize("kind", ["frozen", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FREEZES if kind != "frozen")])
def test_layers_that_a_callback_has_frozen_or_unfrozen_stay_so_after_a_restart(tmp_path, kind):
    make, callback = FREEZES[kind]
    _, whole, history = train(tmp_path / "whole", make, callback)
    for crash in (BATCHES + 5, 2 * BATCHES + 5):
        train(tmp_path / "cut", make, callback, crash=crash)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The learning rate")
        _, resumed, resumed_history = train(tmp_path / "cut", make, callback)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history == resumed_history


class Averages(keras.callbacks.Callback):
    """Keeps averages of the weights in variables of the model, which it creates when training begins."""

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "averages"):
            self.model.averages = [keras.Variable(each, trainable=False) for each in self.model.trainable_variables]

    def on_train_batch_end(self, batch, logs=None):
        for average, variable in zip(self.model.averages, self.model.trainable_variables, strict=True):
            average.assign(0.9 * average + 0.1 * variable)


class OwnAverages(keras.Model):
    """Keeps averages that its train step creates."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.averages = None

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        logs = super().train_step(data)
        if self.averages is None:
            with tf.init_scope():
                self.averages = [tf.Variable(tf.zeros(each.shape), trainable=False) for each in self.trainable_variables]
        for average, variable in zip(self.averages, self.trainable_variables, strict=True):
            average.assign(0.9 * average + 0.1 * variable.value)
        return logs


def own_averages():
    model = OwnAverages()
    model(np.zeros((1, 6), "float32"))
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


class Adapt(keras.callbacks.Callback):
    """Trains adapters of the first layer from the second epoch on."""

    def on_epoch_begin(self, epoch, logs=None):
        layer = self.model.layers[0]
        if epoch and not layer.lora_enabled:
            layer.enable_lora(2)
            self.model.averages = [layer.lora_kernel_a, layer.lora_kernel_b]
            self.model.compile(keras.optimizers.Adam(0.01), "mse")
            self.model.make_train_function()


MAKERS = {
    "a callback when training begins": (two_layers, [Averages]),
    "a callback when an epoch begins": (two_layers, [Adapt]),
    "the train step": (own_averages, []),
}


@pytest.mark.parametrize("callback", [Adapt, Averages, Unfreeze])
def test_a_callback_that_changes_the_variables_of_the_model_in_mid_run_is_told_what_a_restart_needs(tmp_path, callback):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(tmp_path, two_layers, callback)
    told = [str(each.message) for each in said if "The model has other variables" in str(each.message)]
    assert len(told) == (callback is Adapt), told


@pytest.mark.parametrize(
    "make, callbacks",
    [pytest.param(*made, id=name, marks=[] if name == "the train step" else pytest.mark.slow) for name, made in MAKERS.items()],
)
def test_variables_created_when_training_begins_or_in_its_first_batch_are_resumed(tmp_path, make, callbacks):
    model, whole, _ = train(tmp_path / "whole", make, *callbacks)
    train(tmp_path / "cut", make, *callbacks, crash=BATCHES + 5)
    resumed_model, resumed, _ = train(tmp_path / "cut", make, *callbacks)
    for a, b in zip([*whole, *model.averages], [*resumed, *resumed_model.averages], strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_checkpoint_with_unknown_variables_is_refused_and_does_not_affect_the_next_fit(tmp_path):
    train(tmp_path, two_layers, Averages, crash=BATCHES + 5)
    keras.backend.clear_session(free_memory=False)
    model = two_layers()
    before = model.get_weights()
    trained = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            trained.append(batch)

        def on_train_batch_end(self, batch, logs=None):
            trained.append(batch)

    with pytest.raises(InputError, match="is of another model: only the file has"):
        fit(model, GlobalStepCheckpoint(tmp_path / "b{batch:02d}.weights.h5", resume=True), Look(), epochs=EPOCHS)
    assert trained == [0] and counters_of(model).read().batch == 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model, GlobalStepCheckpoint(tmp_path / "other" / "b{batch:02d}.weights.h5"))
    assert names(tmp_path / "other") == [f"b{BATCHES}.weights.h5"]
    with pytest.warns(UserWarning, match="The model is not restored.*only the file has"):
        fit(two_layers(), GlobalStepCheckpoint(tmp_path / "b{batch:02d}.weights.h5", resume=True), epochs=1)


class Queue(keras.Model):
    """Keeps the newest samples, in a variable whose shape grows.

    Args:
        shape: of the variable, as TensorFlow is told.
    """

    def __init__(self, shape):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.queue = tf.Variable(tf.zeros([0, 6]), trainable=False, shape=shape)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        self.queue.assign(tf.concat([data[0], self.queue], 0)[:70])
        return super().train_step(data)


@pytest.mark.parametrize("shape", [tf.TensorShape([None, 6]), tf.TensorShape(None)], ids=["size", "rank"])
def test_a_variable_whose_shape_changes_is_saved_and_resumed(tmp_path, shape):
    def make():
        model = Queue(shape)
        model(np.zeros((1, 6), "float32"))
        model.compile(keras.optimizers.Adam(0.05), "mse")
        return model

    model, whole, _ = train(tmp_path / "whole", make)
    train(tmp_path / "cut", make, crash=BATCHES + 5)
    assert latest_checkpoint(tmp_path / "cut").batch == BATCHES + 5
    other, resumed, _ = train(tmp_path / "cut", make)
    for a, b in zip([*whole, model.queue.numpy()], [*resumed, other.queue.numpy()], strict=True):
        np.testing.assert_array_equal(a, b)
    restored = make()
    restore(restored, tmp_path / "cut" / "b05.weights.h5")
    np.testing.assert_array_equal(restored.queue.numpy(), arrays()[0][:20].reshape(5, 4, 6)[::-1].reshape(20, 6))


def test_a_vocabulary_that_a_callback_learns_is_in_the_next_archive(tmp_path):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["one"])
    words = keras.Input((1,), dtype="string")
    model = keras.Model(words, keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Embedding(9, 2)(lookup(words)))))
    model.compile("adam", "mse")

    class Learn(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                lookup.adapt(["one", "one", "two"])

    data = tf.data.Dataset.from_tensors((tf.constant([["one"], ["two"]]), tf.zeros([2, 1])))
    model.fit(data, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "b{batch}.keras"), Learn()])
    vocabularies = []
    for path in (tmp_path / "b1.keras", tmp_path / "b2.keras"):
        files.verify(str(path))
        with zipfile.ZipFile(path) as archive:
            (name,) = [each for each in archive.namelist() if each.startswith("assets/")]
            vocabularies.append(archive.read(name).split())
    assert vocabularies == [[b"[UNK]", b"one"], [b"[UNK]", b"one", b"two"]]
