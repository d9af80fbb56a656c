"""A file contains the model at the batch in its name, whatever happens before it is written."""

import copy
import json
import threading
import zipfile

import keras
import numpy as np
import pytest
from compare import assert_same_weights, datasets
from kind_data import BATCHES
from kinds import KINDS
from small import Do, fit, names

import callbacks.saving.checkpoint_maker
from callbacks import GlobalStepCheckpoint, latest_checkpoint, restore
from callbacks.disk import files, stored_header
from callbacks.state.snapshot import Snapshot


@pytest.fixture
def gate(monkeypatch):
    """Blocks every save until the gate is opened, before its values are copied or before they are written."""
    opened = threading.Event()

    def hold(owner, name):
        real = getattr(owner, name)

        def held(*arguments):
            assert opened.wait(300)
            return real(*arguments)

        monkeypatch.setattr(owner, name, held)
        return opened

    yield {"copied": lambda: hold(Snapshot, "fetch"), "written": lambda: hold(callbacks.saving.checkpoint_maker.state, "write")}
    opened.set()


class After(keras.callbacks.Callback):
    """Calls a function of the model after a batch of this fit, counted from 1, or at the end of an epoch."""

    def __init__(self, act, *, batch=None, epoch=None):
        super().__init__()
        self.act, self.batch, self.epoch, self.seen = act, batch, epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.batch:
            self.act(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            self.act(self.model)


def fresh(make, seed=0):
    """Returns a model that trains eagerly, which is fast for a small model."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    model = make()
    model.run_eagerly = True
    return model


def save_with_keras(model, directory):
    """Saves with stock Keras, in both formats."""
    built, model.built = model.built, True  # required by Keras for a model without `call`
    model.save_weights(directory / "stock.weights.h5")
    model.save(directory / "stock.keras")
    model.built = built


def parts(path, directory):
    """Returns the configuration in an archive, without memory addresses, and a file with its weights."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(
            archive.read("config.json"), object_hook=lambda part: {k: v for k, v in part.items() if k != "shared_object_id"}
        )
        weights = directory / f"{path.stem}-of-archive.weights.h5"
        weights.write_bytes(archive.read("model.weights.h5"))
    return config, weights


def assert_same_values(one, other):
    for (name, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(b, a, err_msg=name)


SAVED = 11  # the only save while ten more batches train
HELD = [("GAN with three optimizers", "copied"), ("LoRA", "written"), ("stateful LSTM and GRU", "copied")]
MORE_HELD = [("GAN with three optimizers", "written"), ("LoRA", "copied"), ("stateful LSTM and GRU", "written")]
SUFFIXES = ".weights.h5", ".keras"


@pytest.mark.parametrize("kind, what", [*HELD, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_HELD)])
def test_a_file_written_ten_batches_later_contains_every_array_as_at_the_save(tmp_path, gate, kind, what):
    kind, opened = KINDS[kind], gate[what]()
    seen = {}

    def look(model):
        seen["saved"] = kind.values(model)
        save_with_keras(model, tmp_path)

    def open_gate(model):
        seen["later"] = kind.values(model)
        assert names(tmp_path / "ours") == []
        opened.set()

    ours = [GlobalStepCheckpoint(tmp_path / "ours" / f"b{{batch}}{suffix}", save_freq=SAVED) for suffix in SUFFIXES]
    others = [After(look, batch=SAVED), After(open_gate, batch=SAVED + 10)]
    model = fresh(kind.make)
    model.fit(kind.data(), epochs=-(-(SAVED + 10) // BATCHES), verbose=0, callbacks=[*others, *ours])
    moved = [name for (name, a), (_, b) in zip(seen["saved"], seen["later"], strict=True) if (a != b).any()]
    assert len(moved) > 0.6 * len(seen["saved"]), moved

    weights, archive = (tmp_path / "ours" / f"b{SAVED}{suffix}" for suffix in SUFFIXES)
    assert_same_weights(tmp_path / "stock.weights.h5", weights)
    stock_config, stock_weights = parts(tmp_path / "stock.keras", tmp_path)
    config, archived_weights = parts(archive, tmp_path)
    assert config == stock_config
    assert_same_weights(stock_weights, archived_weights)
    for path in (weights, archive):
        other = fresh(kind.make, seed=1)
        other.fit(kind.data().take(1), verbose=0)  # builds layers that need a batch
        assert restore(other, path).batch == SAVED
        assert_same_values(seen["saved"], kind.values(other))


def run_and_clear(directory, *others):
    """Trains with a save at each batch. Returns the history."""
    kind = KINDS["Dropout and BatchNormalization"]
    model = fresh(kind.make)
    checkpoint = GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=1)
    return model.fit(kind.data(), epochs=2, verbose=0, callbacks=[*others, checkpoint]).history


class ClearAlways(keras.callbacks.Callback):
    """Calls `clear_session` repeatedly in a thread during training."""

    def __init__(self):
        super().__init__()
        self.calls, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.clear)

    def on_train_batch_end(self, batch, logs=None):
        if self.thread.ident is None:  # not earlier, because Keras cannot be cleared while it builds the model
            self.thread.start()

    def clear(self):
        while not self.ended.wait(0.001):
            keras.backend.clear_session(free_memory=False)
            self.calls += 1

    def end(self):
        self.ended.set()
        self.thread.join()


class ClearAtEachBatch(keras.callbacks.Callback):
    """Calls `clear_session` at each batch, as many scripts do against growing memory."""

    calls = 0

    def on_train_batch_end(self, batch, logs=None):
        keras.backend.clear_session(free_memory=self.calls == 3)
        self.calls += 1

    def end(self):
        pass


@pytest.mark.parametrize("clears", [pytest.param(ClearAtEachBatch, marks=pytest.mark.slow), ClearAlways])
def test_clear_session_during_training_does_not_change_files(tmp_path, clears):
    clear = clears()
    quiet = run_and_clear(tmp_path / "quiet")
    try:
        assert run_and_clear(tmp_path / "cleared", clear) == quiet
    finally:
        clear.end()
    assert clear.calls >= 2 * BATCHES
    assert names(tmp_path / "cleared") == names(tmp_path / "quiet") == [f"b{i + 1:02d}.weights.h5" for i in range(2 * BATCHES)]
    for name in names(tmp_path / "quiet"):
        files.verify(tmp_path / "cleared" / name)
        assert_same_weights(tmp_path / "quiet" / name, tmp_path / "cleared" / name)


def compile_anew(model):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)


def compile_again(model):
    """Compiles with another optimizer; the running `fit` then needs its train function again."""
    compile_anew(model)
    model.make_train_function()


WHEN = {
    "at the end of an epoch": After(compile_again, epoch=1),
    "after a batch": After(compile_again, batch=2),
    "at the very end": After(compile_anew, epoch=3),
}


@pytest.mark.parametrize("is_first", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", WHEN)
def test_compiling_in_a_callback_does_not_lose_a_save(tmp_path, when, is_first):
    kind = KINDS["accumulated gradients"]
    ends = {}
    for ours in (False, True):
        model = fresh(kind.make)
        checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}_s{step}.weights.h5", save_freq=2) if ours else After(None)
        last = After(lambda model: save_with_keras(model, tmp_path), epoch=3)
        compiles = copy.copy(WHEN[when])
        model.fit(
            kind.data(), epochs=3, verbose=0, callbacks=[*((compiles, checkpoint) if is_first else (checkpoint, compiles)), last]
        )
        ends[ours] = kind.values(model)
    assert_same_values(ends[False], ends[True])
    newest = latest_checkpoint(tmp_path / "b{batch}_s{step}.weights.h5")
    assert newest.batch == 3 * BATCHES
    assert_same_weights(tmp_path / "stock.weights.h5", newest.path)


def with_lora():
    model = KINDS["accumulated gradients"].make()
    model.layers[0].enable_lora(2)
    compile_again(model)
    return model


def adapt(model):
    model.layers[0].enable_lora(2)
    compile_again(model)


def test_adapters_that_a_callback_adds_are_in_the_next_save(tmp_path):
    kind = KINDS["accumulated gradients"]
    values = []
    model = fresh(kind.make)
    look = After(lambda model: (values.append(kind.values(model)), save_with_keras(model, tmp_path)), batch=BATCHES + 2)
    checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=1)
    model.fit(kind.data(), epochs=2, verbose=0, callbacks=[After(adapt, epoch=1), checkpoint, look])
    assert not any("lora" in name for name in stored_header.read_header(f"{tmp_path}/b{BATCHES}.weights.h5")["variables"])
    assert_same_weights(tmp_path / "stock.weights.h5", tmp_path / f"b{BATCHES + 2}.weights.h5")
    other = fresh(with_lora, seed=1)
    restore(other, tmp_path / f"b{BATCHES + 2}.weights.h5")
    assert np.abs(other.layers[0].lora_kernel_b.numpy()).max() > 0
    assert_same_values(values[0], kind.values(other))


@pytest.mark.parametrize("compiles", [True, False])
def test_layers_that_a_callback_freezes_are_frozen_in_the_next_save(tmp_path, compiles):
    kind = KINDS["Dropout and BatchNormalization"]

    def freeze(model):
        model.layers[0].trainable = False
        if compiles:
            compile_again(model)

    model = fresh(kind.make)
    checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.keras", save_freq=1)
    look = After(lambda model: save_with_keras(model, tmp_path), batch=BATCHES + 1)
    model.fit(kind.data(), epochs=2, verbose=0, callbacks=[After(freeze, epoch=1), checkpoint, look])
    config, weights = parts(tmp_path / f"b{BATCHES + 1}.keras", tmp_path)
    stock_config, stock_weights = parts(tmp_path / "stock.keras", tmp_path)
    before, _ = parts(tmp_path / f"b{BATCHES}.keras", tmp_path)
    assert config == stock_config != before
    assert_same_weights(stock_weights, weights)
    frozen = [datasets(parts(tmp_path / f"b{batch}.keras", tmp_path)[1])["layers/dense/vars/0"] for batch in (BATCHES, BATCHES + 1)]
    np.testing.assert_array_equal(*frozen)


def test_settings_that_a_callback_changes_are_in_the_next_archive(tmp_path):
    """A Dropout rate is neither a variable nor an object; a program that loads the archive trains with it."""
    kind = KINDS["Dropout and BatchNormalization"]

    def change(model):
        dropout = model.layers[2]
        dropout.rate, dropout.trainable = 0.05, False
        model.optimizer.learning_rate = 0.001

    model = fresh(kind.make)
    checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.keras", save_freq=1)
    look = After(lambda model: save_with_keras(model, tmp_path), batch=BATCHES + 1)
    model.fit(kind.data(), epochs=2, verbose=0, callbacks=[After(change, epoch=1), checkpoint, look])
    config, _ = parts(tmp_path / f"b{BATCHES + 1}.keras", tmp_path)
    assert config == parts(tmp_path / "stock.keras", tmp_path)[0]


@pytest.mark.slow
def test_draws_without_a_seed_resume_though_keras_has_forgotten_their_generator(tmp_path):
    """The compiled train step keeps its original generator, and so does the checkpoint."""

    class Clear(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            keras.backend.clear_session(free_memory=False)

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x))

    def train(directory, crash_after=None):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), Noise(), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        checkpoint = GlobalStepCheckpoint(str(directory / "b{batch:02d}.weights.h5"), save_freq=1, resume=True)
        crash = [Do(crash_after, stop)] if crash_after else []
        fit(model, checkpoint, Clear(), *crash, epochs=3, shuffle=False)
        return [v.numpy() for v in model.variables]

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", 15)
    for whole, resumed in zip(train(tmp_path / "whole"), train(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(whole, resumed)
