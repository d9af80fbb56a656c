"""Common kinds of models, each as small as possible, with data, and with the state to compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from generative_models import ddim, gan, gan_with_three_optimizers, lazy_vae, vae
from kind_data import BATCH, rows, series, tokens

from callbacks.model.keras_private import native_variable

layers, optimizers = keras.layers, keras.optimizers


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        make: makes a compiled model.
        data: makes the batches of an epoch.
        optimizers: the optimizers of a model.
        more: further variables that training changes and that `model.variables` lacks.
        keras_saves: whether stock Keras saves the model as `.keras`.
        keras_mirrors: whether stock Keras trains the model on several replicas.
    """

    make: Callable[[], keras.Model]
    data: Callable[[], tf.data.Dataset] = rows
    optimizers: Callable[[keras.Model], Sequence[keras.optimizers.Optimizer]] = lambda model: [model.optimizer]
    more: Callable[[keras.Model], Sequence[Any]] = lambda model: []
    keras_saves: bool = True
    keras_mirrors: bool = True

    def values(self, model: keras.Model) -> list[tuple[str, np.ndarray]]:
        """Returns name and value of every variable that training changes, for each replica."""
        of_optimizers = [variable for optimizer in self.optimizers(model) for variable in optimizer.variables]
        local = model.distribute_strategy.experimental_local_results
        found = []
        for variable in (*model.variables, *model.metrics_variables, *of_optimizers, *self.more(model)):
            parts = local(native_variable(variable))
            found += [(variable.name if isinstance(variable, tf.Variable) else variable.path, part.numpy()) for part in parts]
        return found


def lora():
    """Adapters on each of the three layers that Keras has them for."""
    ids = keras.Input((3,), dtype="int32")
    adapted = [layers.Embedding(20, 4), layers.EinsumDense("abc,cd->abd", (3, 4), activation="tanh"), layers.Dense(5)]
    x = adapted[1](adapted[0](ids))
    model = keras.Model(ids, layers.Dense(1)(adapted[2](layers.Flatten()(x))))
    for layer in adapted:
        layer.enable_lora(2)
    model.compile(optimizers.Adam(0.05), "mse")
    return model


def quantized_lora():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(1)])
    model.quantize("int8")
    model.layers[0].enable_lora(2)
    model.compile(optimizers.Adam(0.05), "mse")
    return model


def stateful_rnn():
    """A state of the recurrent layers that lasts from batch to batch."""
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(BATCH, 3, 2)),
            layers.LSTM(3, stateful=True, return_sequences=True),
            layers.GRU(3, stateful=True),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.Adam(0.05), "mse")
    return model


class TensorFlowNoise(layers.Layer):
    """Draws from a generator of TensorFlow's, and counts its calls in a variable of TensorFlow's."""

    def __init__(self, **options):
        super().__init__(**options)
        self.generators = (tf.random.Generator.from_seed(3),)
        self.calls = tf.Variable(0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.of_replica = tf.Variable(0.0, trainable=False, synchronization=tf.VariableSynchronization.ON_READ)

    def call(self, x, training=False):
        if not training:
            return x
        self.calls.assign_add(1)
        self.of_replica.assign_add(tf.reduce_sum(x))
        return x + self.generators[0].normal(tf.shape(x))


def tensorflow_state():
    model = keras.Sequential([keras.Input((6,)), TensorFlowNoise(), layers.Dense(1)])
    model.compile(optimizers.Adam(0.05), "mse")
    return model


class OwnFormat(layers.Layer):
    """Saves its variables in a way of its own, and loads less than it saves."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.mean = self.add_weight(shape=(3,), initializer="zeros", trainable=False, aggregation="mean", name="mean")
        self.calls = tf.Variable(0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def call(self, x, training=False):
        y = x @ self.kernel
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(y, 0))
            self.calls.assign_add(1)
        return y - self.mean

    def save_own_variables(self, store):
        store["kernel"], store["mean"], store["calls"] = self.kernel, self.mean, self.calls

    def load_own_variables(self, store):
        self.kernel.assign(store["kernel"])


def own_format():
    model = keras.Sequential([keras.Input((6,)), OwnFormat(), layers.Dense(1)])
    model.compile(optimizers.Adam(0.05), "mse")
    return model


class Counting(keras.Model):
    """Keeps variables of each kind and changes them in its train step."""

    def __init__(self):
        super().__init__()
        self.dense = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
        self.of_keras = keras.Variable(0.0, trainable=False, aggregation="only_first_replica")
        self.of_layer = self.add_weight(shape=(2,), trainable=False, initializer="zeros", aggregation="only_first_replica")
        self.of_tensorflow = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def get_config(self):
        return {}

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        self.of_keras.assign_add(1.0)
        self.of_layer.assign_add([1.0, 2.0])
        self.of_tensorflow.assign_add(3.0)
        return super().train_step(data)


def own_variables():
    model = Counting()
    model(np.zeros((1, 6), "float32"))
    model.compile(optimizers.Adam(0.05), "mse")
    return model


def multi_optimizer():
    """One optimizer for each layer, by `keras.optimizers.MultiOptimizer`."""
    of_layers = {"first": optimizers.Adam(0.05), "last": optimizers.SGD(0.05, momentum=0.9)}
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh", name="first"), layers.Dense(1, name="last")])
    model.compile(optimizers.MultiOptimizer(lambda variable: of_layers[variable.path.split("/")[-2]]), "mse")
    return model


class TwoOptimizers:
    """A custom optimizer with two optimizers for different variables, which Keras does not know."""

    def __init__(self, first, rest):
        self.first, self.rest = first, rest

    def apply(self, gradients, variables):
        self.first.apply(gradients[:2], variables[:2])
        self.rest.apply(gradients[2:], variables[2:])


class TrainedByTwo(keras.Model):
    """Trains with a plain object that holds two optimizers."""

    def __init__(self):
        super().__init__()
        self.dense = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(1)])
        self.both = TwoOptimizers(optimizers.Adam(0.05), optimizers.SGD(0.05, momentum=0.9))

    def get_config(self):
        return {}

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((self(x) - y) ** 2)
        self.both.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


def plain_wrapper():
    model = TrainedByTwo()
    model(np.zeros((1, 6), "float32"))
    model.compile(optimizer=None)
    return model


def dense(optimizer):
    """Two layers with a given optimizer."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def loss_scale():
    """Averages of the weights within an optimizer that scales the loss."""
    inner = optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    return dense(optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=3))


def accumulation():
    return dense(optimizers.Adam(0.05, gradient_accumulation_steps=3))


def dropout_and_batchnorm():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    )
    model.compile(optimizers.Adam(0.05), "mse", metrics=["mae"])
    return model


class Noise(layers.Layer):
    """Draws from Keras's global generator, because it passes no seed."""

    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def unseeded():
    model = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(1)])
    model.compile(optimizers.Adam(0.05), "mse")
    return model


def _two(model):
    return [model.d_optimizer, model.g_optimizer]


KINDS = {
    "GAN with two optimizers": Kind(gan, optimizers=_two),
    "GAN with three optimizers": Kind(
        gan_with_three_optimizers, optimizers=lambda model: [*_two(model), model.of_parts["encoder"]]
    ),
    "DDIM": Kind(ddim),
    "VAE without call": Kind(vae, keras_saves=False),
    "VAE built by its first batch": Kind(lazy_vae, keras_saves=False, keras_mirrors=False),
    "LoRA": Kind(lora, data=tokens),
    "int8 and LoRA": Kind(quantized_lora),
    "stateful LSTM and GRU": Kind(stateful_rnn, data=series, keras_mirrors=False),  # the state has the global batch's size
    "tf.random.Generator and tf.Variable": Kind(
        tensorflow_state,
        more=lambda model: [model.layers[0].generators[0].state, model.layers[0].calls, model.layers[0].of_replica],
    ),
    "variables of the model": Kind(own_variables, more=lambda model: [model.of_tensorflow]),
    "a layer with a format of its own": Kind(own_format, more=lambda model: [model.layers[0].calls]),
    "MultiOptimizer": Kind(multi_optimizer, keras_saves=False),
    "a wrapper of two optimizers": Kind(plain_wrapper, optimizers=lambda model: [model.both.first, model.both.rest]),
    "LossScaleOptimizer and averages": Kind(loss_scale, keras_mirrors=False),
    "accumulated gradients": Kind(accumulation, keras_mirrors=False),
    "Dropout and BatchNormalization": Kind(dropout_and_batchnorm),
    "draws without a seed": Kind(unseeded, keras_mirrors=False),
}
