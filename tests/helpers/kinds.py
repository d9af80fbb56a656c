"""Kinds of models that people train, each as small as it can be: what to build, on which data, and which state to compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.keras_private import native_variable

BATCH, BATCHES = 4, 3  # samples of a global batch, batches of an epoch
layers, optimizers = keras.layers, keras.optimizers


def rows() -> tf.data.Dataset:
    """Batches of inputs `[4, 6]` and targets `[4, 1]`."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(BATCH * BATCHES, 6)), random.normal(size=(BATCH * BATCHES, 1))
    return tf.data.Dataset.from_tensor_slices((x.astype("float32"), y.astype("float32"))).batch(BATCH)


def tokens() -> tf.data.Dataset:
    """Batches of token ids `[4, 3]` and targets `[4, 1]`."""
    ids = np.random.default_rng(1).integers(0, 20, (BATCH * BATCHES, 3)).astype("int32")
    return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(ids).batch(BATCH), rows().map(lambda x, y: y))


def series() -> tf.data.Dataset:
    """Batches of series `[4, 3, 2]` and targets `[4, 1]`."""
    return rows().map(lambda x, y: (tf.reshape(x, (BATCH, 3, 2)), y))


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
        """Name and value of every variable that training changes, as each replica has it."""
        of_optimizers = [variable for optimizer in self.optimizers(model) for variable in optimizer.variables]
        local = model.distribute_strategy.experimental_local_results
        found = []
        for variable in (*model.variables, *model.metrics_variables, *of_optimizers, *self.more(model)):
            parts = local(native_variable(variable))
            found += [(getattr(variable, "path", variable.name), part.numpy()) for part in parts]
        return found


class GAN(keras.Model):
    """A generator and a discriminator with an optimizer each, as in the guides of keras.io.

    Args:
        updates: how often the discriminator is updated in a batch.
    """

    def __init__(self, updates=1):
        super().__init__()
        self.updates = updates
        self.discriminator = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(1)])
        self.generator = keras.Sequential([keras.Input((3,)), layers.Dense(6)])
        self.seeds = keras.random.SeedGenerator(5)
        self.d_tracker, self.g_tracker = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    def get_config(self):
        return {"updates": self.updates}

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_of = keras.losses.BinaryCrossentropy(from_logits=True, reduction="sum")

    def get_compile_config(self):  # stock Keras has no use for two optimizers
        return None

    @property
    def metrics(self):
        return [self.d_tracker, self.g_tracker]

    def noise(self, real):
        return keras.random.normal((tf.shape(real)[0], 3), seed=self.seeds)

    def train_step(self, data):
        real, _ = data
        label = tf.ones((tf.shape(real)[0], 1))
        for _ in range(self.updates):
            fake = self.generator(self.noise(real))
            with tf.GradientTape() as tape:
                d_loss = self.loss_of(label, self.discriminator(fake)) + self.loss_of(0 * label, self.discriminator(real))
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            g_loss = self.loss_of(0 * label, self.discriminator(self.generator(self.noise(real))))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.d_tracker.update_state(d_loss)
        self.g_tracker.update_state(g_loss)
        return {"d_loss": self.d_tracker.result(), "g_loss": self.g_tracker.result()}


def gan(updates=1):
    """Two optimizers."""
    model = GAN(updates)
    model.compile(optimizers.Adam(0.05), optimizers.Adam(0.02))
    return model


class GANWithEncoder(GAN):
    """A GAN whose noise is encoded by a layer that has its own optimizer, in a dict."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(3)])

    def get_config(self):
        return {}

    def compile(self, d_optimizer, g_optimizer, of_parts):
        super().compile(d_optimizer, g_optimizer)
        self.of_parts = of_parts

    def train_step(self, data):
        real, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((self.generator(self.encoder(real)) - real) ** 2)
        weights = self.encoder.trainable_weights
        self.of_parts["encoder"].apply(tape.gradient(loss, weights), weights)
        return super().train_step(data)


def gan_with_three_optimizers():
    model = GANWithEncoder()
    model.compile(optimizers.Adam(0.05), optimizers.RMSprop(0.02), {"encoder": optimizers.SGD(0.01, momentum=0.9)})
    return model


class DDIM(keras.Model):
    """A denoising model: a normalizer, a network, and the moving average of the network."""

    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
        self.ema_network = keras.models.clone_model(self.network)
        self.seeds = keras.random.SeedGenerator(3)

    def get_config(self):
        return {}

    def compile(self, **options):
        super().compile(**options)
        self.noise_loss = keras.metrics.Mean(name="noise_loss")

    @property
    def metrics(self):
        return [self.noise_loss]

    def call(self, x):
        return self.ema_network(self.normalizer(x))

    def train_step(self, data):
        x = self.normalizer(data[0])
        noise = keras.random.normal(tf.shape(x), seed=self.seeds)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(noise - self.network(x + noise)))
        weights = self.network.trainable_weights  # and not those of the average
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.noise_loss.update_state(loss)
        for weight, average in zip(self.network.weights, self.ema_network.weights, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        return {"noise_loss": self.noise_loss.result()}


def ddim():
    model = DDIM()
    model.normalizer.adapt(rows().map(lambda x, y: x))
    model.compile(optimizer=optimizers.AdamW(0.01))
    model(np.zeros((1, 6), "float32"))
    return model


class Sampling(layers.Layer):
    """Draws from the distribution that an encoder names."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        return mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=self.seeds)


class VAE(keras.Model):
    """A variational autoencoder without `call`, as in the guides of keras.io."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            mean, log_variance, drawn = self.encoder(x)
            divergence = -0.5 * tf.reduce_mean(1 + log_variance - mean**2 - tf.exp(log_variance))
            loss = tf.reduce_mean((self.decoder(drawn) - x) ** 2) + divergence
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self.total.update_state(loss)
        return {"loss": self.total.result()}


def vae():
    x = keras.Input((6,))
    mean, log_variance = layers.Dense(2)(x), layers.Dense(2)(x)
    encoder = keras.Model(x, [mean, log_variance, Sampling()([mean, log_variance])])
    model = VAE(encoder, keras.Sequential([keras.Input((2,)), layers.Dense(6)]))
    model.compile(optimizers.Adam(0.01))
    return model


class LazyEncoder(keras.Model):
    """An encoder that learns the shape of its input from the first batch."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance, self.sampling = layers.Dense(2), layers.Dense(2), Sampling()

    def call(self, x):
        mean, log_variance = self.mean(x), self.log_variance(x)
        return mean, log_variance, self.sampling([mean, log_variance])


def lazy_vae():
    """No Input anywhere: only the first batch builds the model."""
    model = VAE(LazyEncoder(), keras.Sequential([layers.Dense(4, activation="tanh"), layers.Dense(6)]))
    model.compile(optimizers.Adam(0.01))
    return model


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

    def call(self, x, training=False):
        if not training:
            return x
        self.calls.assign_add(1)
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

    def call(self, x, training=False):
        y = x @ self.kernel
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(y, 0))
        return y - self.mean

    def save_own_variables(self, store):
        store["kernel"], store["mean"] = self.kernel, self.mean

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
    """A user's own optimizer: one for the first variables, another one for the rest. Keras knows nothing of it."""

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
    """Draws from Keras's own generator, since it gives no seed."""

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
        tensorflow_state, more=lambda model: [model.layers[0].generators[0].state, model.layers[0].calls]
    ),
    "variables of the model": Kind(own_variables, more=lambda model: [model.of_tensorflow]),
    "a layer with a format of its own": Kind(own_format),
    "MultiOptimizer": Kind(multi_optimizer, keras_saves=False),
    "a wrapper of two optimizers": Kind(plain_wrapper, optimizers=lambda model: [model.both.first, model.both.rest]),
    "LossScaleOptimizer and averages": Kind(loss_scale, keras_mirrors=False),
    "accumulated gradients": Kind(accumulation, keras_mirrors=False),
    "Dropout and BatchNormalization": Kind(dropout_and_batchnorm),
    "draws without a seed": Kind(unseeded, keras_mirrors=False),
}
