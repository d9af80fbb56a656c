"""A user's model may have any attribute, and can be restored without being compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError, counters_of, restore


class Named(keras.Model):
    """Has attributes with the same names as ours, in the model and in the files."""

    def __init__(self):
        super().__init__()
        self.global_step = keras.layers.Dense(4)
        self.header = keras.layers.Dense(1)
        self.variables_ = [keras.layers.Dense(1)]
        self._global_step_attached = self._global_step_counters = "mine"
        self.callbacks = {"batch": keras.layers.Dense(1)}
        self.batch = tf.Variable(0.0, trainable=False)

    def call(self, x):
        return self.header(self.global_step(x)) + self.variables_[0](x) + self.callbacks["batch"](x)


def named_model():
    keras.utils.set_random_seed(1)
    model = Named()
    model.compile("adam", "mse")
    model(arrays(1)[0])
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", pytest.param(".keras", marks=pytest.mark.slow)])
def test_attributes_named_as_ours_are_saved_and_resumed(tmp_path, suffix):
    template = str(tmp_path / ("b{batch}" + suffix))
    whole, resumed, stock = named_model(), named_model(), named_model()
    fit(whole, epochs=2, shuffle=False)
    fit(named_model(), GlobalStepCheckpoint(template), shuffle=False)
    fit(resumed, GlobalStepCheckpoint(template, resume=True), epochs=2, shuffle=False)
    assert names(tmp_path) == [f"b10{suffix}", f"b20{suffix}"] and resumed._global_step_attached == "mine"
    if suffix == ".weights.h5":
        stock.load_weights(tmp_path / "b20.weights.h5")
        for a, b in zip(whole.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def bare_model(units=1):
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(units)])


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_model_that_is_not_compiled_gets_everything_except_the_optimizer(tmp_path, suffix):
    trained = small_model(metrics=["mae"])
    fit(trained, GlobalStepCheckpoint(tmp_path / ("b{batch}" + suffix)))
    model = bare_model()
    assert restore(model, tmp_path).batch == counters_of(model).read().batch == 10
    np.testing.assert_array_equal(model.predict(arrays(1)[0], verbose=0), trained.predict(arrays(1)[0], verbose=0))


def test_another_model_is_refused_even_if_it_is_not_compiled(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"))
    with pytest.raises(InputError, match="is of another model"):
        restore(bare_model(units=2), tmp_path)


def test_a_model_that_is_compiled_after_a_restore_continues_training(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"))
    model = bare_model()
    restore(model, tmp_path)
    model.compile("adam", "mse")
    fit(model, GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"))
    assert names(tmp_path) == ["b10.weights.h5", "b20.weights.h5"]
