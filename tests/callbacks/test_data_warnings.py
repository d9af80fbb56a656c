"""A warning before the first batch says if a resume may get the data in another order."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from crashes import SAID, Crash, assert_equal, batches, samples, train
from small import BATCH, Do, arrays, fit, small_model
from tensorflow.python.framework import config

from callbacks import GlobalStepCheckpoint


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

    assert "shuffled or sampled without a seed (call keras.utils.set_random_seed first" in run(crash=3)
    assert "Training reads and drops 3 batches and continues with the next batches" in run()


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
    assert len(said) == 1 and "its seeds differ from those of the resumed run" in said[0]


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
    assert "its seeds differ from those" in train(lambda: images(6), {}, tmp_path / "other")[1][0]


def test_a_dataset_whose_shuffle_has_advanced_in_this_process_is_reported(tmp_path):
    shuffled, same = samples().shuffle(40).batch(BATCH), batches()
    for data, tells in ((shuffled, True), (same, False)):
        directory = tmp_path / str(tells)
        train(lambda data=data: [data], {}, directory, 13)
        _, said = train(lambda data=data: [data], {}, directory)
        assert bool(said) is tells and all("this process has read it already" in each for each in said)
