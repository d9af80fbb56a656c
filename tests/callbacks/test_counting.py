"""The counters in a name equal those of the state in the file, for every way in which `fit` iterates over the data.

The truth is kept by the model itself: a layer that counts the training calls and the samples it saw, in weights that are
saved with the rest.
"""

import json
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from features import PARTIAL_EXECUTIONS
from small import with_built_optimizer

from callbacks import GlobalStepCheckpoint, latest_checkpoint

pytestmark = pytest.mark.versions

SAMPLES, BATCH = 112, 4
BATCHES = SAMPLES // BATCH  # 28 in an epoch


class Witness(keras.layers.Layer):
    """Counts the batches and samples on which it is trained."""

    def build(self, input_shape):
        self.batches = self.add_weight(shape=(), initializer="zeros", trainable=False, name="batches")
        self.samples = self.add_weight(shape=(), initializer="zeros", trainable=False, name="samples")

    def call(self, x, training=False):
        if training:
            self.batches.assign_add(1.0)
            self.samples.assign_add(keras.ops.cast(keras.ops.shape(x)[0], "float32"))
        return x


def witnessed(optimizer="sgd", model_class=keras.Model, **compiled):
    inputs = keras.Input((3,))
    model = model_class(inputs, keras.layers.Dense(1)(Witness(name="witness")(inputs)))
    model.compile(optimizer, "mse", **compiled)
    return with_built_optimizer(model)


def arrays(samples=SAMPLES):
    return np.random.rand(samples, 3).astype("float32"), np.random.rand(samples, 1).astype("float32")


def dataset(samples=SAMPLES):
    return tf.data.Dataset.from_tensor_slices(arrays(samples)).batch(BATCH)


def saved(directory):
    """Returns the counters in the files of a directory, by name, and checks each name against the witness in the file."""
    found = {}
    for path in sorted(directory.iterdir()):
        with h5py.File(path) as file:
            counts = json.loads(file["global_step/header"][()].tobytes())["counts"]
            batches, samples = (float(file[f"layers/witness/vars/{i}"][()]) for i in range(2))
            iterations = int(file["optimizer/vars/0"][()])
        counts = SimpleNamespace(**counts)
        assert (counts.batch, counts.samples) == (batches, samples), path.name
        assert counts.step == iterations, path.name
        found[path.name] = counts
    return found


def boundaries(save_freq, spe, epochs, batches=BATCHES):
    """Returns the batches at which saves are due: the first end of an execution at or after each multiple, and the last batch."""
    ends = [epoch * batches + min(done, batches) for epoch in range(epochs) for done in range(spe, batches + spe, spe)]
    due = {next(end for end in ends if end >= multiple) for multiple in range(save_freq, ends[-1] + 1, save_freq)}
    return sorted(due | {ends[-1]})


def batches_of(files):
    return sorted(counts.batch for counts in files.values())


@pytest.fixture
def template(tmp_path):
    return str(tmp_path / "b{batch:04d}.weights.h5")


@pytest.mark.parametrize("spe", [1, 4, 7, pytest.param(56, marks=PARTIAL_EXECUTIONS)])
def test_saves_fall_on_the_first_boundary_after_each_multiple(tmp_path, spe):
    """Two callbacks save at multiples of 5 and of 14."""
    callbacks = [GlobalStepCheckpoint(tmp_path / str(freq) / "b{batch:04d}.weights.h5", save_freq=freq) for freq in (5, 14)]
    witnessed(steps_per_execution=spe).fit(*arrays(), batch_size=BATCH, epochs=3, verbose=0, callbacks=callbacks)
    for save_freq in (5, 14):
        files = saved(tmp_path / str(save_freq))
        assert batches_of(files) == boundaries(save_freq, spe, epochs=3)
        assert list(files) == [f"b{counts.batch:04d}.weights.h5" for counts in files.values()]
        assert all(counts.epoch == (counts.batch - 1) // BATCHES + 1 for counts in files.values())


@pytest.mark.parametrize("spe", [1, 4])
def test_an_epoch_with_a_last_partial_batch_counts_its_samples(tmp_path, spe):
    template = str(tmp_path / "s{samples}_b{batch}.weights.h5")
    x, y = arrays(SAMPLES - 3)
    witnessed(steps_per_execution=spe).fit(
        x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq="epoch")]
    )
    assert list(saved(tmp_path)) == ["s109_b28.weights.h5", "s218_b56.weights.h5"]


@pytest.mark.parametrize("spe, steps", [(1, 10), (4, 10), (7, 10)])
def test_steps_per_epoch_that_do_not_divide_the_data(tmp_path, template, spe, steps):
    """With endless data, Keras trains on complete executions: 14 batches, not 10, with 7 in each."""
    witnessed(steps_per_execution=spe).fit(
        dataset().repeat(),
        steps_per_epoch=steps,
        epochs=3,
        verbose=0,
        callbacks=[GlobalStepCheckpoint(template, save_freq=6)],
    )
    assert batches_of(saved(tmp_path)) == boundaries(6, spe, epochs=3, batches=-(-steps // spe) * spe)


@pytest.mark.parametrize("spe", [1, 4, 7])
def test_data_of_unknown_length(tmp_path, template, spe):
    """TensorFlow finds the end by reaching it, and Keras counts the execution that reached it."""
    unknown = dataset().filter(lambda x, y: True)
    witnessed(steps_per_execution=spe).fit(unknown, epochs=3, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=10)])
    assert batches_of(saved(tmp_path)) == boundaries(10, spe, epochs=3)


def test_a_generator(tmp_path, template):
    def generate():
        x, y = arrays()
        while True:
            for first in range(0, SAMPLES, BATCH):
                yield x[first : first + BATCH], y[first : first + BATCH]

    witnessed().fit(generate(), steps_per_epoch=9, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=5)])
    assert batches_of(saved(tmp_path)) == boundaries(5, 1, epochs=2, batches=9)


def test_run_eagerly(tmp_path, template):
    witnessed(run_eagerly=True).fit(
        *arrays(40), batch_size=BATCH, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=4)]
    )
    assert batches_of(saved(tmp_path)) == boundaries(4, 1, epochs=2, batches=10)


def test_a_custom_train_step(tmp_path, template):
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((self(x, training=True) - y) ** 2)
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
            )
            return {"own_loss": loss}

    witnessed(model_class=Own, steps_per_execution=4).fit(
        *arrays(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=10)]
    )
    assert batches_of(saved(tmp_path)) == boundaries(10, 4, epochs=2)


def test_accumulated_gradients_make_fewer_steps_than_batches(tmp_path):
    """Keras's `iterations` counts batches here, so the step is the number of applied updates."""
    template = str(tmp_path / "b{batch}_s{step}.weights.h5")
    witnessed(keras.optimizers.SGD(gradient_accumulation_steps=4)).fit(
        *arrays(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=10)]
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"b{batch}_s{batch // 4}.weights.h5" for batch in (10, 20, 30, 40, 50, 56)}


def test_an_overflow_of_the_loss_scale_is_a_batch_and_no_step(tmp_path):
    template = str(tmp_path / "b{batch}_s{step}.weights.h5")
    x, y = arrays(40)
    y[8:12] = np.inf  # the third batch's gradients are not finite
    model = witnessed(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=4.0))
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=2)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"b{batch}_s{batch - (batch > 2)}.weights.h5" for batch in (2, 4, 6, 8, 10)
    }


def test_several_fits_and_a_new_callback_continue_counting(tmp_path, template):
    model = witnessed()
    for _ in range(3):
        callback = GlobalStepCheckpoint(template, save_freq=10)
        model.fit(*arrays(), batch_size=BATCH, epochs=1, verbose=0, callbacks=[callback])
    assert batches_of(saved(tmp_path)) == [10, 20, 28, 30, 40, 50, 56, 60, 70, 80, 84]


def test_one_callback_in_several_fits(tmp_path, template):
    model, callback = witnessed(), GlobalStepCheckpoint(template, save_freq=10)
    for first in range(3):
        model.fit(*arrays(), batch_size=BATCH, epochs=first + 1, initial_epoch=first, verbose=0, callbacks=[callback])
    files = saved(tmp_path)
    assert batches_of(files) == [10, 20, 28, 30, 40, 50, 56, 60, 70, 80, 84]
    assert files["b0060.weights.h5"].epoch == 3


def test_batches_without_a_callback_count_too(tmp_path, template):
    """With `train_on_batch` and a fit without our callbacks in between, because the counters belong to the model."""
    model = witnessed()
    model.fit(*arrays(), batch_size=BATCH, epochs=1, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=28)])
    model.fit(*arrays(), batch_size=BATCH, epochs=1, verbose=0)
    x, y = arrays(BATCH)
    model.train_on_batch(x, y)
    model.fit(*arrays(), batch_size=BATCH, epochs=1, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=28)])
    assert batches_of(saved(tmp_path)) == [28, 84, 85]


def test_compiling_again_continues_counting(tmp_path, template):
    model = witnessed()
    model.fit(*arrays(), batch_size=BATCH, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq="epoch")])
    model.compile("sgd", "mse", steps_per_execution=7)
    model.fit(*arrays(), batch_size=BATCH, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq="epoch")])
    assert [latest_checkpoint(template).batch, len(list(tmp_path.iterdir()))] == [56, 2]


@pytest.mark.parametrize("replicas, spe", [(2, 7), (4, 1)])
def test_replicas_share_one_count(tmp_path, strategy, replicas, spe):
    template = str(tmp_path / "b{batch}_s{samples}_r{replicas}.weights.h5")
    mirrored = strategy(replicas)
    with mirrored.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", steps_per_execution=spe)
        with_built_optimizer(model)
    model.fit(dataset(), epochs=2, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq=14)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"b{batch}_s{batch * BATCH}_r{replicas}.weights.h5" for batch in (14, 28, 42, 56)
    }
