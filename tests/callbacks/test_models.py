"""Every part of a model is restored from a checkpoint, and stock Keras loads the same file."""

import contextlib

import keras
import numpy as np
import pytest
from crashes import Crash
from features import CONFIG_CHECK
from small import BATCH, arrays, fit, small_model

from callbacks import CheckpointWriteError, GlobalStepCheckpoint, InputError, latest_checkpoint, restore

pytestmark = pytest.mark.versions

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [layers.Dense(4, activation="relu"), layers.Dense(3)]
        self.heads = {"left": layers.Dense(2), "right": layers.Dense(2)}

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return keras.ops.sum(self.heads["left"](x) + self.heads["right"](x), axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("tests")
class OwnVariables(layers.Layer):
    """Stores its table in a custom way."""

    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 1), name="table")
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def call(self, x, training=False):
        if training:
            self.seen.assign_add(1.0)
        return x @ self.table

    def save_own_variables(self, store):
        store["transposed"] = np.asarray(self.table.value).T
        store["count"] = np.asarray(self.seen.value)

    def load_own_variables(self, store):
        self.table.assign(np.asarray(store["transposed"]).T)
        self.seen.assign(store["count"])


class Words(OwnVariables):
    """Stores an array of texts too."""

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["words"] = np.array(["a", "b"], dtype=object)


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def functional():
    x = keras.Input((6,))
    left, right = layers.Dense(4)(x), layers.Dense(4)(x)
    return keras.Model(x, layers.Dense(1)(layers.BatchNormalization()(layers.Add()([left, right]))))


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dropout(0.3), layers.LayerNormalization()], name="inner")
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(1)(inner(x)))


def shared_layers():
    tower = layers.Dense(6, activation="tanh")
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(1)(tower(tower(x))))


def own_variables():
    return keras.Sequential([keras.Input((6,)), layers.Dense(4), OwnVariables()])


def recurrent():
    return keras.Sequential([keras.Input((6,)), layers.Reshape((3, 2)), layers.GRU(4, dropout=0.2), layers.Dense(1)])


def frozen():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(1)])
    model.layers[0].trainable = False
    return model


def adam():
    return keras.optimizers.Adam(0.05)


def ema():
    return keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)


MODELS = [subclassed, functional, nested, shared_layers, own_variables, recurrent, frozen]


@pytest.mark.slow
@pytest.mark.parametrize("build, optimizer", [*((build, adam) for build in MODELS), (functional, ema)])
def test_every_variable_is_restored_and_stock_keras_loads_the_file(tmp_path, build, optimizer):
    def make():
        keras.backend.clear_session(free_memory=False)
        model = build()
        model.compile(optimizer(), "mse")
        return model

    def all_variables(model):
        return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]

    model, held = make(), {}

    class Hold(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            held[batch + 1] = all_variables(self.model)

    checkpoints = [GlobalStepCheckpoint(tmp_path / ("b{batch}" + suffix), save_freq=7) for suffix in (".weights.h5", ".keras")]
    model.fit(*arrays(), batch_size=BATCH, verbose=0, callbacks=[Hold(), *checkpoints])

    keras.utils.set_random_seed(1)
    for path in (tmp_path / "b7.weights.h5", tmp_path / "b7.keras"):
        other = make()
        assert restore(other, path).batch == 7
        for a, b in zip(held[7], all_variables(other), strict=True):
            np.testing.assert_array_equal(a, b)

        if path.suffix == ".keras":
            stock = keras.models.load_model(path, safe_mode=True)
        else:
            stock = make()
            stock.load_weights(path)
        other.save_weights(tmp_path / "other.weights.h5")
        for a, b in zip(other.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_model_without_an_optimizer_is_saved_too(tmp_path):
    """A custom train step that updates by itself, or not at all."""

    class Frozen(keras.Model):
        def train_step(self, data):
            return {"loss": keras.ops.mean(self(data[0]))}

    x = keras.Input((6,))
    model = Frozen(x, layers.Dense(1)(x))
    model.compile(optimizer=None)
    model.fit(
        *arrays(), batch_size=BATCH, verbose=0, callbacks=[GlobalStepCheckpoint(str(tmp_path / "b{batch}_s{step}.weights.h5"))]
    )
    latest = latest_checkpoint(tmp_path)
    assert (latest.batch, latest.step) == (10, 10)  # nothing else counts updates


def test_the_error_for_a_model_that_is_not_built_says_what_to_do(tmp_path):
    trained = subclassed()
    trained.compile("adam", "mse")
    template = str(tmp_path / "b{batch}.weights.h5")
    trained.fit(*arrays(), batch_size=BATCH, verbose=0, callbacks=[GlobalStepCheckpoint(template)])
    model = Subclassed()
    model.compile("adam", "mse")
    with pytest.raises(InputError, match=r"before it is built\. Call the model on a batch, or give it an Input"):
        restore(model, template)


@CONFIG_CHECK
def test_a_model_that_keras_cannot_serialize_is_refused_after_its_first_batch_and_not_at_its_first_save(tmp_path):
    class Wrapped(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    model = Wrapped(layers.Dense(1))
    model.compile("sgd", "mse")
    checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.keras", save_freq=5)
    with pytest.raises(NotImplementedError, match="get_config"):
        model.fit(*arrays(), batch_size=BATCH, verbose=0, callbacks=[checkpoint])
    assert int(model.optimizer.iterations.numpy()) == 1


def test_a_run_in_bfloat16_is_resumed_in_the_middle_of_an_epoch(tmp_path):
    """Keras logs tensors then, which numpy cannot convert."""

    def train(directory, crash=None):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        checkpoint = GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=5, resume=True, background=False)
        stop = keras.callbacks.EarlyStopping(monitor="loss", patience=5)
        model = small_model()
        with contextlib.suppress(InterruptedError):
            history = fit(model, checkpoint, stop, *([Crash(crash)] if crash else []), epochs=3)
            return [v.numpy().tobytes() for v in model.variables], [float(each) for each in history.history["loss"]], stop.best

    keras.config.set_floatx("bfloat16")
    try:
        whole = train(tmp_path / "whole")
        train(tmp_path / "cut", crash=17)
        assert train(tmp_path / "cut") == whole
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("background", [False, True])
def test_a_value_that_no_resume_would_read_ends_the_first_save_and_not_the_resume(tmp_path, background):
    model = keras.Sequential([keras.Input((6,)), Words()])
    model.compile("sgd", "mse")
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=1, background=background)
    with pytest.raises(CheckpointWriteError, match="words/vars/words has a type that checkpoints do not use"):
        model.fit(np.zeros((8, 6)), np.zeros((8, 1)), batch_size=2, verbose=0, callbacks=[checkpoint])
    assert not list(tmp_path.glob("*.h5"))
