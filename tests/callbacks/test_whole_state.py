"""A restart from any checkpoint ends like the uninterrupted run: weights, optimizer, seeds, history, rates, stopping epoch."""

import contextlib
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_weights
from features import SAME_FOR_ANY_REPLICAS
from small import with_built_optimizer

from callbacks import GlobalStepCheckpoint, counters_of, restore

pytestmark = pytest.mark.versions

BATCHES = 12  # in an epoch


def data(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(BATCHES * 8, 6)).astype("float32")
    return x, (x[:, :1] * x[:, 1:2] + random.normal(size=(len(x), 1))).astype("float32")


def dataset():
    """Returns a data set that cannot seek, with the same order in every epoch."""
    return tf.data.Dataset.from_tensor_slices(data()).batch(8)


def network():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(16), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    )


def compiled(optimizer=None, spe=1):
    model = network()
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", metrics=["mae"], steps_per_execution=spe)
    return with_built_optimizer(model)


class Crash(keras.callbacks.Callback):
    """Ends training with an exception after a number of batches, in a batch or at the end of an epoch."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        if counters_of(self.model).read().batch > self.after:
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        if counters_of(self.model).read().batch == self.after:
            raise InterruptedError


class Rates(keras.callbacks.Callback):
    """Records the learning rate at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def on_epoch_end(self, epoch, logs=None):
        self.seen[epoch] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


def train(make, others, directory, name, *, epochs=6, crashes=(), save_freq=1, **options):
    """Trains in one fit, and after each crash in another fit that resumes. Crashes are given in batches.

    Returns:
        The model, its history, the other callbacks and the checkpoint of the last fit, and the batch that each fit resumed from.
    """
    template, begins = str(directory / name / ("b{batch:04d}" + options.pop("suffix", ".weights.h5"))), []
    for after in (*crashes, None):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model, callbacks = make(), others()
        checkpoint = GlobalStepCheckpoint(template, save_freq=save_freq, resume=True, background=after is None, **options)
        crash = [Crash(after)] if after is not None else []
        fit = dict(epochs=epochs, validation_data=data(1), validation_batch_size=32, verbose=0)
        with contextlib.suppress(InterruptedError):
            history = model.fit(dataset(), callbacks=[checkpoint, *callbacks, *crash], **fit)
        begins.append(checkpoint.resumed_from.batch if checkpoint.resumed_from else 0)
    return model, history, callbacks, checkpoint, begins


def assert_same_end(one, other):
    """Checks that two trainings end with the same files and the same history."""
    assert_same_weights(one[3].newest, other[3].newest)
    for a, b in zip(one[0].variables, other[0].variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert one[1].epoch == other[1].epoch
    assert one[1].history == other[1].history


# After the first batch; in the last batch of an epoch; when that epoch ends; in the middle of the next one.
CRASHES, BEGINS = (0, 11, 12, 17), [0, 1, 12, 12, 18]


@pytest.mark.slow
def test_dropout_batchnorm_and_history_after_crashes_at_any_batch(tmp_path):
    whole = train(compiled, list, tmp_path, "whole", suffix=".keras", epochs=2)
    crashed = train(compiled, list, tmp_path, "crashed", suffix=".keras", epochs=2, crashes=CRASHES)
    assert crashed[4] == BEGINS
    assert whole[1].history == crashed[1].history
    for a, b in zip(whole[0].variables, crashed[0].variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def steering_early_stopping():
    return [keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, restore_best_weights=True, start_from_epoch=1)]


def steering_plateau():
    return [keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=0.05, cooldown=1), Rates()]


def steering_schedule():
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7 if epoch else rate), Rates()]


def of_high_rate():
    return compiled(keras.optimizers.Adam(0.2))  # it soon stops getting better


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """Trains without a crash, once for each list of callbacks. Returns the results of `train`."""
    trained = {}

    def get(others):
        if others not in trained:
            trained[others] = train(of_high_rate, others, tmp_path_factory.mktemp("steered"), "run", epochs=8, save_freq=6)
        return trained[others]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("others", [steering_early_stopping, steering_plateau, steering_schedule])
def test_callbacks_that_control_training_decide_as_without_an_interruption(tmp_path, steered, others):
    whole = steered(others)
    crashed = train(of_high_rate, others, tmp_path, "crashed", epochs=8, save_freq=6, crashes=(7, 36, 59))
    assert_same_end(whole, crashed)
    if others is steering_early_stopping:
        assert 0 < whole[2][0].stopped_epoch < 7
        assert crashed[2][0].stopped_epoch == whole[2][0].stopped_epoch
        assert crashed[2][0].best_epoch == whole[2][0].best_epoch
    else:
        rates = whole[2][-1].seen
        assert len(set(rates.values())) > 1
        assert crashed[2][-1].seen == {epoch: rates[epoch] for epoch in crashed[2][-1].seen}


def test_a_run_that_early_stopping_has_ended_does_not_continue(tmp_path, steered):
    whole = steered(steering_early_stopping)
    shutil.copytree(Path(whole[3].newest).parent, tmp_path / "run")
    again = train(of_high_rate, steering_early_stopping, tmp_path, "run", epochs=8, save_freq=6)
    assert again[3].resumed_from.batch == len(whole[1].epoch) * BATCHES
    assert again[1].history == whole[1].history
    assert not [path for path in (tmp_path / "run").iterdir() if path.name > f"b{again[3].resumed_from.batch:04d}.weights.h5"]


OPTIMIZERS = {
    "ema": lambda: keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5),
    "ema at the end": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=5),
    "schedule": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.05, 60), global_clipnorm=1.0),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), dynamic_growth_steps=7),
    "lion": lambda: keras.optimizers.Lion(0.001),
    "muon": lambda: keras.optimizers.Muon(0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_every_kind_of_optimizer(tmp_path, optimizer):
    def make():
        return compiled(OPTIMIZERS[optimizer]())

    whole = train(make, list, tmp_path, "whole", epochs=2, save_freq=6)
    assert_same_end(whole, train(make, list, tmp_path, "crashed", epochs=2, save_freq=6, crashes=(17,)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_mixed_precision(tmp_path, policy):
    def make():
        keras.mixed_precision.set_global_policy(policy)
        return compiled()

    whole = train(make, list, tmp_path, "whole", epochs=2, save_freq=6)
    assert_same_end(whole, train(make, list, tmp_path, "crashed", epochs=2, save_freq=6, crashes=(17,)))


@pytest.mark.slow
def test_steps_per_execution(tmp_path):
    spe = 5
    whole = train(lambda: compiled(spe=spe), list, tmp_path, "whole", epochs=2, save_freq=6)
    crashes = (spe, 3 * spe)
    assert_same_end(whole, train(lambda: compiled(spe=spe), list, tmp_path, "crashed", epochs=2, save_freq=spe, crashes=crashes))


@pytest.mark.slow
def test_replicas_with_their_own_statistics(tmp_path, strategy):
    mirrored, spe = strategy(2), 4

    def make():
        with mirrored.scope():
            return compiled(spe=spe)

    whole = train(make, list, tmp_path, "whole", epochs=2, save_freq=6)
    crashed = train(make, list, tmp_path, "crashed", epochs=2, save_freq=spe, crashes=(2 * spe, 4 * spe))
    assert_same_end(whole, crashed)
    for a, b in zip(whole[0].non_trainable_weights, crashed[0].non_trainable_weights, strict=True):
        for one, other in zip(a._value.values, b._value.values, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=a.path)


def test_the_last_save_contains_the_last_batch_and_not_the_averages_that_keras_assigns(tmp_path):
    """With `use_ema`, `fit` overwrites the weights at the end; resuming from these would be another training."""
    whole = train(lambda: compiled(OPTIMIZERS["ema at the end"]()), list, tmp_path, "run", epochs=2)
    model = compiled(OPTIMIZERS["ema at the end"]())
    restore(model, whole[3].newest)
    assert any((a.numpy() != b.numpy()).any() for a, b in zip(model.weights, whole[0].weights, strict=True))


@pytest.mark.slow
def test_more_epochs_after_the_end_equal_one_longer_training(tmp_path):
    whole = train(compiled, list, tmp_path, "whole", epochs=4)
    train(compiled, list, tmp_path, "longer", epochs=2)
    assert_same_end(whole, train(compiled, list, tmp_path, "longer", epochs=4))


def test_an_epoch_save_equals_that_of_a_stock_checkpoint_and_a_resume_has_the_changes_of_all_callbacks(tmp_path):
    """The plateau callback comes after the checkpoint, and lowers the rate in the same hook."""

    def make():
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        return compiled(keras.optimizers.SGD(1e-3))

    def run(checkpoint, *others):
        model, rates = make(), Rates()
        plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=100.0, min_lr=0)
        history = model.fit(dataset(), epochs=3, verbose=0, callbacks=[checkpoint, plateau, rates, *others])
        return model, history.history, rates.seen

    def ours():
        return GlobalStepCheckpoint(tmp_path / "ours" / "e{epoch}.weights.h5", resume=True)

    class CrashInTheThirdEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    (tmp_path / "stock").mkdir()
    stock, history, rates = run(keras.callbacks.ModelCheckpoint(tmp_path / "stock" / "e{epoch}.weights.h5", save_weights_only=True))
    assert rates[0] > rates[1] > rates[2]
    with pytest.raises(InterruptedError):
        run(ours(), CrashInTheThirdEpoch())
    restored = make()
    restore(restored, tmp_path / "ours" / "e2.weights.h5")
    assert restored.optimizer.learning_rate.numpy() == np.float32(rates[1])
    resumed, *seen = run(ours())
    assert seen == [history, {2: rates[2]}]
    for a, b in zip(stock.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for epoch in (1, 2, 3):
        assert_same_weights(*(tmp_path / kind / f"e{epoch}.weights.h5" for kind in ("stock", "ours")))


@pytest.mark.slow
@SAME_FOR_ANY_REPLICAS
def test_runs_with_other_numbers_of_replicas_resume_from_each_others_files(tmp_path, strategy):
    def make(replicas):
        keras.utils.set_random_seed(0)
        with strategy(replicas).scope() if replicas > 1 else tf.device(None):
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
            model.compile("adam", "mse")
            return model

    template = str(tmp_path / "b{batch:04d}_r{replicas}.weights.h5")
    for epochs, replicas in ((1, 4), (2, 2), (3, 1), (4, 4)):
        model = make(replicas)
        model.fit(dataset(), epochs=epochs, verbose=0, callbacks=[GlobalStepCheckpoint(template, save_freq="epoch", resume=True)])
    alone = make(1)
    alone.fit(dataset(), epochs=4, verbose=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"b{12 * e:04d}_r{r}.weights.h5" for e, r in ((1, 4), (2, 2), (3, 1), (4, 4))
    }
    for a, b in zip(alone.weights, model.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


class Quantized(keras.layers.Layer):
    """Has a variable whose type HDF5 does not know."""

    def build(self, shape):
        self.table = tf.Variable(tf.bitcast(tf.zeros(3, "int32"), tf.qint32), trainable=False)

    def call(self, x):
        return x


def test_a_quantized_variable_is_restored(tmp_path):
    values = [7, -8, 1 << 30]
    saved, restored = (keras.Sequential([keras.Input((6,)), keras.layers.Dense(1), Quantized()]) for _ in range(2))
    for model in (saved, restored):
        model.compile("sgd", "mse")
    saved.layers[-1].table.assign(tf.bitcast(tf.constant(values), tf.qint32))
    saved.fit(*data(), verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5")])
    restore(restored, tmp_path)
    assert tf.bitcast(restored.layers[-1].table, tf.int32).numpy().tolist() == values
