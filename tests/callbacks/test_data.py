"""After a resume, a run gets the next batch of the uninterrupted run, or a warning before the first batch says why it may not."""

import contextlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import BATCH, Do, arrays, fit, names, small_model
from tensorflow.python.framework import config

from callbacks import GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint, restore

Dataset = tf.data.Dataset
SAID = re.compile("A resume may see this data in another order|The data may come in another order")


def batches(count=10):
    """Returns batches in the same order each time."""
    return Dataset.from_tensor_slices(arrays(count)).batch(BATCH)


def samples(count=10):
    return Dataset.from_tensor_slices(arrays(count))


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
QUICK = ("one pass cut into epochs", "arrays, which fit shuffles", "files and samples shuffled", "a PyDataset", "a generator")


def train(data, options, directory=None, crash=None, spe=1, scope=contextlib.nullcontext, **arguments):
    """Trains as in a new process, until a batch or to the end.

    Returns:
        The model, and the warnings about the order of its data.
    """
    keras.backend.clear_session()
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


def assert_equal(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


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


@pytest.fixture
def no_seed():
    """Sets no seed, as in many scripts; op determinism would refuse this."""
    config.disable_op_determinism()
    tf.random.set_seed(None)
    yield
    config.enable_op_determinism()


@pytest.mark.parametrize(
    "data, options",
    [(lambda: arrays(), dict(batch_size=BATCH)), (lambda: [samples().shuffle(9).batch(BATCH)], {})],
    ids=["arrays", "a dataset"],
)
def test_a_shuffle_without_a_seed_is_reported_before_the_first_batch_of_a_run_and_of_a_resume(tmp_path, no_seed, data, options):
    template = str(tmp_path / "b{batch}.weights.h5")

    def run(crash=None):
        with pytest.warns(UserWarning, match=SAID) as said, contextlib.suppress(InterruptedError):
            checkpoint = GlobalStepCheckpoint(template, save_freq=1, resume=True, background=False)
            callbacks = [checkpoint, Do(1, lambda: warnings.warn("the first batch", stacklevel=1))] + (
                [Crash(crash)] if crash else []
            )
            small_model().fit(*data(), epochs=2, verbose=0, callbacks=callbacks, **options)
        texts = [str(each.message) for each in said]
        found = next(text for text in texts if SAID.match(text))
        assert texts.index(found) < texts.index("the first batch")
        return found

    assert "shuffled or drawn without a seed (call keras.utils.set_random_seed first" in run(crash=3)
    assert "Training reads and drops 3 batches and goes on with what comes then" in run()


def test_nothing_is_printed_without_resume(tmp_path, no_seed, recwarn):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5")))
    assert not [each for each in recwarn if SAID.match(str(each.message))]


@pytest.mark.parametrize("keeps", [lambda data: data.cache(), lambda data: data.repeat(2)], ids=["cache", "repeat"])
def test_a_shuffle_that_depends_on_all_earlier_epochs_is_reported_in_the_first_run_and_in_a_resume(tmp_path, keeps):
    def data():
        return [keeps(samples(5).shuffle(20)).batch(BATCH)]

    for crash in (13, None):
        _, said = train(data, {}, tmp_path, crash)
        assert len(said) == 1 and "a shuffle comes before a repeat, a cache or a concatenation" in said[0]


def test_another_seed_is_reported(tmp_path):
    train(lambda: [samples().shuffle(40, seed=1).batch(BATCH)], {}, tmp_path, 3)
    _, said = train(lambda: [samples().shuffle(40, seed=2).batch(BATCH)], {}, tmp_path)
    assert len(said) == 1 and "its seeds are not those of the run that is resumed" in said[0]


def test_images_of_a_directory_with_another_shuffle_seed_are_reported(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((2, 3, 1), 20 * number + (name == "b"), "uint8")
            keras.utils.save_img(tmp_path / "images" / name / f"{number}.png", pixels)

    def images(seed):
        options = dict(image_size=(2, 3), color_mode="grayscale", batch_size=BATCH, label_mode="binary", verbose=False)
        data = keras.utils.image_dataset_from_directory(tmp_path / "images", seed=seed, **options)
        return [data.map(lambda x, y: (tf.reshape(x, [-1, 6]) / 255, y))]

    stock, _ = train(lambda: images(5), {})
    _, said = train(lambda: images(5), {}, tmp_path / "run", 7)
    assert not said
    resumed, said = train(lambda: images(5), {}, tmp_path / "run")
    assert_equal(stock, resumed)
    assert not said
    train(lambda: images(np.random.randint(10**6)), {}, tmp_path / "other", 7)
    assert "its seeds are not those" in train(lambda: images(6), {}, tmp_path / "other")[1][0]


def test_a_dataset_whose_shuffle_has_advanced_in_this_process_is_reported(tmp_path):
    shuffled, same = samples().shuffle(40).batch(BATCH), batches()
    for data, tells in ((shuffled, True), (same, False)):
        directory = tmp_path / str(tells)
        train(lambda data=data: [data], {}, directory, 13)
        _, said = train(lambda data=data: [data], {}, directory)
        assert bool(said) is tells and all("this process has read it already" in each for each in said)


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


@pytest.mark.parametrize("other", [dict(batch_size=8), pytest.param(dict(batch_size=3), marks=pytest.mark.slow)])
def test_another_batch_size_is_refused_in_the_middle_of_an_epoch_and_accepted_at_its_end(tmp_path, other):
    train(lambda: arrays(), dict(batch_size=BATCH), tmp_path, 4)
    with pytest.raises(InputError, match=r"stands behind 4 batches of this data with 16 samples, and here they have \d+\. In the"):
        train(lambda: arrays(), other, tmp_path)
    train(lambda: arrays(), dict(batch_size=BATCH, epochs=1), tmp_path)
    model, _ = train(lambda: arrays(), {**other, "epochs": 2}, tmp_path)
    assert counters_of(model).read().samples == 80


def test_data_with_fewer_batches_than_were_trained_on_is_refused(tmp_path):
    train(lambda: [batches()], {}, tmp_path, 7)
    with pytest.raises(InputError, match="The data ends after 5 batches, and the checkpoint stands behind batch 7 of it"):
        train(lambda: [batches(5)], {}, tmp_path)


class AnyBatch(keras.Model):
    """Trains on any batch."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones")

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean(tf.square(self.scale - tf.cast(part, tf.float32))) for part in tf.nest.flatten(data))
        self.optimizer.apply([*tape.gradient(loss, [self.scale.value])], [self.scale])
        return {"loss": loss}


@pytest.mark.parametrize(
    "data, expected",
    [
        (lambda: Dataset.range(5), 5),  # scalars
        (lambda: Dataset.range(5).map(lambda i: {"a step": i, "images": tf.zeros([3, 2])}), 15),
        (lambda: Dataset.zip((Dataset.range(5), Dataset.range(15).batch(3))), 15),
        (lambda: Dataset.range(14).batch(3).map(lambda x: (tf.zeros([7]), x, tf.cast(x, tf.float32))), 14),
        (lambda: Dataset.range(15).batch(3, drop_remainder=True).map(lambda x: (tf.zeros([7]), x, x)), 15),
    ],
)
def test_samples_are_counted_whatever_the_first_part_of_a_batch_is(tmp_path, data, expected):
    def run(directory, crash=None):
        model = AnyBatch()
        model.compile("sgd")
        template = str(directory / "b{batch}-{samples}.weights.h5")
        callbacks = [GlobalStepCheckpoint(template, save_freq=2, resume=True, background=False)]
        with contextlib.suppress(InterruptedError):
            model.fit(data(), verbose=0, callbacks=callbacks + ([Crash(crash)] if crash else []))
        return model

    whole = run(tmp_path / "whole")
    assert f"b5-{expected}.weights.h5" in names(tmp_path / "whole")
    run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut")
    assert resumed.scale.numpy() == whole.scale.numpy()
    assert counters_of(resumed).read().samples == expected


def test_data_without_a_batch_is_as_in_stock_keras(tmp_path):
    def outcome(*callbacks):
        try:
            return small_model().fit(batches().take(0), verbose=0, callbacks=list(callbacks)).history
        except Exception as error:
            return type(error), str(error)

    stock = outcome()
    assert outcome(GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), resume=True)) == stock
    assert latest_checkpoint(tmp_path).batch == 0
