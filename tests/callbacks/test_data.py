"""After a resume, a run gets the next batch of the uninterrupted run, on any kind of data."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from crashes import Crash, Dataset, assert_equal, batches, samples, train
from small import BATCH, arrays, small_model

from callbacks import GlobalStepCheckpoint, latest_checkpoint, restore
from callbacks.disk.stored_header import read_header


def generator():
    x, y = arrays(7)
    place = 0
    while True:
        yield x[place : place + BATCH], y[place : place + BATCH]
        place = (place + BATCH) % len(x)


def from_generator():
    signature = (tf.TensorSpec([None, 6]), tf.TensorSpec([None, 1]))
    return Dataset.from_generator(lambda: zip(*(np.split(part, 10) for part in arrays()), strict=True), output_signature=signature)


class Shuffled(keras.utils.PyDataset):
    """Shuffles its samples at the end of each epoch, as in keras.io's examples."""

    def __init__(self, **options):
        super().__init__(**options)
        self.x, self.y = arrays()
        self.order, self.random = np.arange(len(self.x)), np.random.default_rng(5)

    @property
    def num_batches(self):
        return 10

    def __getitem__(self, index):
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self):
        self.random.shuffle(self.order)


def noise(x, y):
    return x + tf.random.uniform([6]), y


def files_in_turn():
    """Reads files as usual: shuffles the files, and interleaves and shuffles the samples of several."""
    return Dataset.range(5).shuffle(5).interleave(lambda file: samples().shard(5, file), cycle_length=2).shuffle(8).batch(BATCH)


KINDS = {
    "one pass cut into epochs": (lambda: [batches(30)], dict(steps_per_epoch=10)),
    "a pass that ends within an epoch": (lambda: [batches(13)], dict(steps_per_epoch=5, epochs=6)),
    "endless, shuffled anew in each pass": (lambda: [samples(7).shuffle(28).batch(BATCH).repeat()], dict(steps_per_epoch=10)),
    "arrays, which fit shuffles": (lambda: arrays(), dict(batch_size=BATCH)),
    "arrays cut into epochs": (lambda: arrays(13), dict(batch_size=BATCH, steps_per_epoch=5, epochs=6)),
    "shuffled anew in each epoch": (lambda: [samples().shuffle(40, seed=3).batch(BATCH)], {}),
    "shuffled by the global seed": (lambda: [samples().shuffle(16).batch(BATCH).prefetch(2)], {}),
    "shuffled once": (lambda: [samples().shuffle(16, reshuffle_each_iteration=False).batch(BATCH)], {}),
    "cached, then shuffled": (lambda: [samples().cache().shuffle(40).batch(BATCH)], {}),
    "files and samples shuffled": (lambda: [files_in_turn()], {}),
    "random operations in a map": (lambda: [samples().map(noise).batch(BATCH)], {}),
    "of unknown length": (lambda: [samples().filter(lambda x, y: True).shuffle(40).batch(BATCH)], {}),
}
DOUBTED = {
    "a generator": (lambda: [generator()], dict(steps_per_epoch=10)),
    "a dataset from a generator": (lambda: [from_generator()], {}),
    "a dataset from a generator, cut into epochs": (lambda: [from_generator().repeat()], dict(steps_per_epoch=7, epochs=4)),
    "a PyDataset": (lambda: [Shuffled()], dict(shuffle=False)),
    "a PyDataset that fit shuffles": (lambda: [Shuffled()], dict(shuffle=True)),
    "a PyDataset of several workers": (lambda: [Shuffled(workers=2)], {}),
}
CRASHES = (3, 10, 17, 24)
QUICK = ("one pass cut into epochs", "arrays, which fit shuffles", "files and samples shuffled")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in (*KINDS, *DOUBTED)]
)
def test_runs_that_crash_at_any_batch_end_like_stock_keras_without_a_crash(tmp_path, kind):
    data, options = {**KINDS, **DOUBTED}[kind]
    stock, _ = train(data, options)
    for crash in CRASHES:
        _, said = train(data, options, tmp_path, crash)
        assert latest_checkpoint(tmp_path).batch == crash
        assert bool(said) is (kind in DOUBTED), said
    resumed, said = train(data, options, tmp_path)
    assert_equal(stock, resumed)
    assert bool(said) is (kind in DOUBTED), said


@pytest.mark.parametrize("spe", [4])
def test_several_batches_per_execution(tmp_path, spe):
    data, options = lambda: [samples(30).shuffle(40).batch(BATCH)], dict(steps_per_epoch=8)
    stock, _ = train(data, options, spe=spe)
    for crash in (4, 12, 20):
        train(data, options, tmp_path, crash, spe=spe)
        assert latest_checkpoint(tmp_path).batch == crash
    assert_equal(stock, train(data, options, tmp_path, spe=spe)[0])


@pytest.mark.slow
def test_replicas_that_share_batches(tmp_path, strategy):
    scope = strategy(2).scope
    data, options = lambda: [samples(30).shuffle(40).batch(BATCH)], dict(steps_per_epoch=10)
    stock, _ = train(data, options, scope=scope)
    for crash in (3, 17):
        train(data, options, tmp_path, crash, scope=scope)
    assert_equal(stock, train(data, options, tmp_path, scope=scope)[0])


def test_more_epochs_continue_the_pass_where_it_ended(tmp_path):
    data, options = lambda: [samples(7).shuffle(28).batch(BATCH).repeat()], dict(steps_per_epoch=5)
    stock, _ = train(data, {**options, "epochs": 5})
    train(data, {**options, "epochs": 2}, tmp_path)
    assert_equal(stock, train(data, {**options, "epochs": 5}, tmp_path)[0])


def test_a_restored_model_continues_at_the_next_batch_without_a_callback(tmp_path):
    stock, _ = train(lambda: [batches()], dict(epochs=2))
    train(lambda: [batches()], dict(epochs=2), tmp_path, 7)
    model = small_model(keras.optimizers.SGD(0.05, momentum=0.9))
    restore(model, tmp_path)
    model.fit(batches(), epochs=2, verbose=0)
    assert_equal(stock, model)


def test_two_fits_of_a_script_on_one_dataset_resume_in_the_second_one(tmp_path):
    def script(directory=None, crash=None):
        keras.utils.set_random_seed(1)
        data, model = samples().shuffle(40).batch(BATCH), small_model()
        with contextlib.suppress(InterruptedError):
            for epochs in (2, 4):
                template = str(directory / "b{batch:02d}.weights.h5")
                callbacks = [GlobalStepCheckpoint(template, save_freq=1, resume=True, background=False)]
                callbacks += [Crash(crash)] if crash else []
                model.fit(data, initial_epoch=epochs - 2, epochs=epochs, verbose=0, callbacks=callbacks)
        return model

    whole = script(tmp_path / "whole")
    script(tmp_path / "cut", 27)
    assert_equal(whole, script(tmp_path / "cut"))


def test_a_fit_after_a_restore_saves_checkpoints_that_a_resume_reads(tmp_path):
    """Its first iterator begins after fewer epochs than the place in the checkpoint."""
    data = batches(10)
    small_model().fit(data, epochs=3, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "a" / "m_{batch}.weights.h5")])
    model = small_model()
    restore(model, tmp_path / "a")
    again = GlobalStepCheckpoint(tmp_path / "b" / "m_{batch:05d}.weights.h5", save_freq=3)
    model.fit(batches(10), epochs=3, verbose=0, callbacks=[again])
    assert latest_checkpoint(tmp_path / "b").batch == 60


def test_a_save_after_a_callback_restored_an_earlier_checkpoint_has_the_place_of_that_one(tmp_path):
    model, data = small_model(), batches(10)
    model.fit(data, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "a" / "m_{batch}.weights.h5", save_freq=4)])
    back = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: restore(model, tmp_path / "a" / "m_4.weights.h5"))
    model.fit(data, verbose=0, callbacks=[back, GlobalStepCheckpoint(tmp_path / "b" / "m_{batch}.weights.h5")])
    place, earlier = (read_header(str(tmp_path / name / "m_4.weights.h5"))["data"] for name in "ba")
    assert latest_checkpoint(tmp_path / "b").batch == 4
    assert place == earlier


def test_data_that_repeats_itself_nearly_forever_can_be_resumed(tmp_path):
    data = samples().batch(BATCH).repeat(1 << 58)
    small_model().fit(data, steps_per_epoch=5, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "m_{batch}.weights.h5")])
    assert latest_checkpoint(tmp_path).batch == 5
