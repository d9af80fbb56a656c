"""Samples are counted whatever a batch contains, and data that a resumed epoch does not fit is refused."""

import contextlib

import keras
import pytest
import tensorflow as tf
from crashes import Crash, Dataset, batches, train
from small import BATCH, arrays, names, small_model

from callbacks import GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint


@pytest.mark.parametrize("other", [dict(batch_size=8), pytest.param(dict(batch_size=3), marks=pytest.mark.slow)])
def test_another_batch_size_is_refused_in_the_middle_of_an_epoch_and_accepted_at_its_end(tmp_path, other):
    train(lambda: arrays(), dict(batch_size=BATCH), tmp_path, 4)
    with pytest.raises(InputError, match=r"was saved after 4 batches with 16 samples, but here these batches have \d+\. In the"):
        train(lambda: arrays(), other, tmp_path)
    train(lambda: arrays(), dict(batch_size=BATCH, epochs=1), tmp_path)
    model, _ = train(lambda: arrays(), {**other, "epochs": 2}, tmp_path)
    assert counters_of(model).read().samples == 80


def test_data_with_fewer_batches_than_were_trained_on_is_refused(tmp_path):
    train(lambda: [batches()], {}, tmp_path, 7)
    with pytest.raises(InputError, match=r"The data ends after 5 batches, but .*weights.h5 was saved after batch 7 of it"):
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
