"""A resumed run uses the learning rate that the user wants, and prints which one if two differ."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint
from callbacks.restoring import restore_weights


class Rates(keras.callbacks.Callback):
    """Records the rate of each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.trained = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) > self.trained:  # and was not skipped
            self.seen.append(round(float(self.model.optimizer.learning_rate.numpy()), 6))


def train(directory, optimizer, *callbacks, epochs=2, save_freq="epoch"):
    rates, template = Rates(), str(directory / "b{batch:02d}.weights.h5")
    checkpoint = GlobalStepCheckpoint(template, save_freq=save_freq, resume=True, background=False)
    fit(small_model(optimizer), rates, *callbacks, checkpoint, epochs=epochs)
    return rates.seen


class Stop(Exception):
    """Ends a fit like a crash."""


def crash():
    raise Stop


@contextlib.contextmanager
def silent():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The learning rate")
        yield


@pytest.mark.parametrize("save_freq", ["epoch", 4])  # from the end of an epoch, and from its middle
def test_a_new_rate_in_compile_is_used_and_reported(tmp_path, save_freq):
    with pytest.raises(Stop):
        train(tmp_path, keras.optimizers.SGD(0.01), Do(13, crash), save_freq=save_freq)
    with pytest.warns(
        UserWarning, match=r"The learning rate is 0\.002: compile has changed it from 0\.01, so it replaces"
    ) as warned:
        rates = train(tmp_path, keras.optimizers.SGD(0.002))
    assert set(rates) == {0.002}
    assert len([each for each in warned if "learning rate" in str(each.message)]) == 1
    with silent():  # from then on it is the run's own
        assert set(train(tmp_path, keras.optimizers.SGD(0.002), epochs=3)) == {0.002}


def test_a_rate_that_a_callback_has_lowered_stays_lowered_silently(tmp_path):
    def lower(model):
        model.optimizer.learning_rate = 0.003

    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            lower(self.model)

    with silent():
        train(tmp_path, keras.optimizers.SGD(0.01), Lower(), epochs=1)
        assert set(train(tmp_path, keras.optimizers.SGD(0.01))) == {0.003}


def test_a_second_fit_does_not_mistake_a_lowered_rate_for_that_of_compile(tmp_path):
    model = small_model(keras.optimizers.SGD(0.01))
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    fit(model, GlobalStepCheckpoint(template))
    model.optimizer.learning_rate = 0.003
    fit(model, GlobalStepCheckpoint(template), epochs=2)
    with silent():
        assert set(train(tmp_path, keras.optimizers.SGD(0.01), epochs=3)) == {0.003}


def test_the_rate_of_a_file_without_compile_arguments_is_kept_and_reported(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.snapshot.rates_of_fit", lambda model, tree: {})
        train(tmp_path, keras.optimizers.SGD(0.01), epochs=1)
    with pytest.warns(UserWarning, match=r"The learning rate is 0\.01: it is the checkpoint's rate, and not 0\.002"):
        assert set(train(tmp_path, keras.optimizers.SGD(0.002))) == {0.01}


def test_a_schedule_is_that_of_compile(tmp_path):
    def schedule(rate):
        return keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([14], [rate, rate / 2]))

    class Halved(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.rate = float(self.model.optimizer.learning_rate.numpy())

    for rate in (0.04, 0.02):
        halved = Halved()
        checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.weights.h5"), resume=True)
        with silent():
            fit(small_model(schedule(rate)), halved, checkpoint, epochs=1 if rate == 0.04 else 2)
    assert halved.rate == pytest.approx(0.01)


@pytest.mark.parametrize(
    "then, now, words", [(True, False, "a schedule as .* a number"), (False, True, "a number as .* a schedule")]
)
def test_a_schedule_in_place_of_a_number_is_refused_with_both_and_the_other_way_round(tmp_path, then, now, words):
    def adam(is_schedule):
        return keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5) if is_schedule else 0.1)

    train(tmp_path, adam(then), epochs=1)
    with pytest.raises(InputError, match=f"b10.weights.h5: its run was compiled with {words}"):
        train(tmp_path, adam(now), epochs=2)
    assert train(tmp_path, adam(then), epochs=2)


def test_a_finished_run_says_that_nothing_is_left(tmp_path, capsys):
    train(tmp_path, "sgd", epochs=1)
    assert "Nothing left" not in capsys.readouterr().out
    train(tmp_path, "sgd", epochs=1)
    out = capsys.readouterr().out
    assert out == f"Nothing left to train: {tmp_path}/b10.weights.h5 was saved at the end of epoch 1, and epochs is 1.\n"


def test_a_run_whose_last_batch_is_saved_says_that_nothing_is_left(tmp_path, capsys):
    for _ in range(2):
        fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=5, resume=True), epochs=2)
    out = capsys.readouterr().out
    assert out == f"Nothing left to train: {tmp_path}/b20.weights.h5 was saved after the last batch of epoch 2, and epochs is 2.\n"


def test_a_run_that_a_callback_has_ended_says_so(tmp_path, capsys):
    stops = [keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9) for _ in range(2)]
    for each in stops:
        train(tmp_path, "sgd", each, epochs=9)
    assert "b20.weights.h5 was saved at the end of epoch 2, and a callback has ended the training." in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_of_another_run_come_without_its_optimizer_counters_and_seeds(tmp_path, suffix):
    def model(optimizer):
        layers = [keras.Input((6,)), keras.layers.Dropout(0.5), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        model.compile(optimizer, "mse")
        return model

    fit(trained := model("adam"), GlobalStepCheckpoint(str(tmp_path / "run" / "checkpoints" / ("b{batch}" + suffix))))
    for optimizer, source in [("adam", "run"), ("sgd", "run/checkpoints")]:  # the same optimizer, and another one
        other = model(optimizer)
        other.optimizer.build(other.trainable_variables)
        before = [value.numpy() for value in other.optimizer.variables]
        seed = other.layers[0].seed_generator.state.numpy()
        assert restore_weights(other, tmp_path / source).batch == 10
        for one, two in zip(trained.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
        for one, two in zip(before, other.optimizer.variables, strict=True):
            np.testing.assert_array_equal(one, two.numpy())
        np.testing.assert_array_equal(other.layers[0].seed_generator.state.numpy(), seed)
        checkpoint = GlobalStepCheckpoint(str(tmp_path / optimizer / "b{batch}.weights.h5"))
        fit(other, checkpoint)
        assert latest_checkpoint(tmp_path / optimizer).batch == 10


def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5")))
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    other.compile("sgd", "mse")
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"is of another model: .*has shape \(2,\)"):
        restore_weights(other, tmp_path)
    np.testing.assert_array_equal(before[0], other.get_weights()[0])
    with pytest.raises(ValueError, match="No checkpoint to take weights from at"):
        (tmp_path / "empty").mkdir()
        restore_weights(other, tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no such directory"):
        restore_weights(other, tmp_path / "none")
